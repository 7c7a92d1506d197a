# make setup · make demo · make test · make test-slow · make test-slurm · make families · make curve        (README.md says what each is for)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files go to the two processes in the order of tests/conftest.py: the longest first.
PYTEST := pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup setup-all demo families curve test test-slow test-extras test-newer-torch test-slurm checks clean

setup: $(VENV)/.setup

setup-all: $(VENV)/.setup-all

# A torch that is already in the environment stays as it is: its version replaces the pinned one.
$(VENV)/.setup: pyproject.toml constraints.txt
	./install.sh "$(PYTHON)" "$(VENV)" dev
	touch $@

$(VENV)/.setup-all: $(VENV)/.setup
	./install.sh "$(PYTHON)" "$(VENV)" all,dev
	touch $@

demo: setup
	BIN="$(abspath $(BIN))" examples/demo.sh

# With the token model that is the control of `make families`.
$(VENV)/.setup-families: $(VENV)/.setup
	./install.sh "$(PYTHON)" "$(VENV)" dev,transformers
	touch $@

# The five model families and a token model on stories whose truth is known: at most 40 minutes on two cores.
families: $(VENV)/.setup-families
	$(BIN)/python benchmarks/families.py --output families

# Consistent sentences against minutes of training, with the data of `make families`: about 50 minutes on two cores.
curve: $(VENV)/.setup-families
	$(BIN)/python benchmarks/curve.py --output families --picture docs/pictures/tales_curve.svg

checks: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: checks
	$(BIN)/$(PYTEST)

test-slow: test-newer-torch test-extras

# With every extra on the pinned torch: what is slow or needs one, and every command of the demo.
test-extras: setup-all
	LCM_EVERY_EXTRA=1 $(BIN)/$(PYTEST) -m "(slow or needs) and not slurm"
	BIN="$(abspath $(BIN))" DEMO=demo/all-extras DEMO_SHORT=1 examples/demo.sh

# With none of the extras on a newer torch: what asks something of it, and every command of the demo.
test-newer-torch:
	tests/with_newer_torch.sh "$(PYTHON)"

# A real Slurm with two virtual nodes on this machine, from Debian's packages: needs root.
test-slurm: setup
	$(BIN)/pytest -q -m slurm tests/slurm

clean:
	rm -rf $(VENV) .venv-newer demo families build *.egg-info .mypy_cache .ruff_cache .pytest_cache
