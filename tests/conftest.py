"""Shared by all tests: one thread (results then do not depend on the machine's cores), and no silent skips."""

import os

import pytest
import torch

torch.set_num_threads(1)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where LCM_FAIL_ON_SKIP is set, a skipped test is a failure: a check that did not run proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("LCM_FAIL_ON_SKIP") and skipped and exitstatus == 0:
        reporter.write_line(f"{len(skipped)} skipped, and LCM_FAIL_ON_SKIP is set: failing", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
