#!/usr/bin/env bash
# The promise "any torch from 2.6 up, with none of the extras": what asks something of torch, and every command of the
# demo, on a newer one. What only reads options, texts, files or pages is the same on any torch.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-newer
[ -x $venv/bin/python ] || "$1" -m venv $venv
$venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
./install.sh "$1" $venv dev
for extra in sonar fairseq2 deepspeed; do
    if $venv/bin/python -c "import $extra" 2>/dev/null; then
        echo "$extra is installed in $venv, which must have none of the extras" >&2
        exit 1
    fi
done
ask_torch=(tests/{models,inference,training,plan,codec,codec_lab,evaluation} tests/data/test_datamodule*.py
    tests/test_batch.py tests/test_recorded.py)
$venv/bin/pytest -q -n 2 --dist loadfile --no-loadscope-reorder "${ask_torch[@]}"
BIN="$PWD/$venv/bin" DEMO=demo/newer-torch DEMO_SHORT=1 examples/demo.sh
