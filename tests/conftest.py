"""Shared by all tests: one thread (results then do not depend on the machine's cores), and no silent skips."""

import os
from importlib.util import find_spec
from pathlib import Path

import lightning  # noqa: F401  before lcm: what jaxtyping's import hook sees imported, it has compiled anew
import pytest
import torch

torch.set_num_threads(1)

TESTS = Path(__file__).parent
LONGEST = (
    "prepare/test_prepare_memory", "prepare/test_prepare_kill", "plan/test_plan_memory", "codec/test_compiled_encoder",
    "training/test_strategies", "training/test_module", "test_readme", "codec/test_sonar", "training", "plan",
    "prepare",
)  # fmt: skip
"""Files that begin first, so that no process is left with a long file when the other has nothing more to do."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `needs("package")` stay out of a run without that package, those marked `cuda` of one without a GPU.

    They are reported as deselected; where LCM_EVERY_EXTRA is set, as `make test-slow` does, no package may be missing.
    The longest files come first.
    """
    lacking = [item for item in items if _lacks(item)]
    if lacking and os.environ.get("LCM_EVERY_EXTRA"):
        item = lacking[0]
        raise pytest.UsageError(f"{item.nodeid} needs {', '.join(_lacks(item))}, and LCM_EVERY_EXTRA is set")
    without_gpu = [item for item in items if item.get_closest_marker("cuda")] if not torch.cuda.is_available() else []
    if out := [*lacking, *without_gpu]:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """The place of its file in LONGEST."""
    name = item.path.relative_to(TESTS).as_posix()
    return next((turn for turn, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))


def _lacks(item: pytest.Item) -> list[str]:
    """The packages that a test needs and that are not installed."""
    return [name for mark in item.iter_markers("needs") for name in mark.args if find_spec(name) is None]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run with a skipped test if LCM_FAIL_ON_SKIP is set: a check that did not run proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("LCM_FAIL_ON_SKIP") and skipped and exitstatus == 0:
        reporter.write_line(f"{len(skipped)} skipped, and LCM_FAIL_ON_SKIP is set: failing", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
