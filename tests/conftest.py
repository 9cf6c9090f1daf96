"""Settings that every test shares."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from tests import needs

# One thread a process: the tests run in one process per core.
torch.set_num_threads(1)

# A shell starts background jobs with SIGINT ignored, and what it starts inherits that: the tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NOTHING = "REDLINE_SKIP_NOTHING"
"""Environment variable, set in CI: a run fails for what it skipped though it could be installed."""
skipped = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="K/N", default="0/1", help="run the K-th of N parts of the tests (from 0)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    addresses = [item.nodeid for item in items if re.search(r" object at 0x[0-9a-f]{6}", item.nodeid)]
    if addresses:
        raise pytest.UsageError(
            f"workers cannot agree on a test whose name has an address, give it an id: {addresses[0]}"
        )
    try:
        chosen = needs.part(config.getoption("--part"), [item.nodeid for item in items])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.hook.pytest_deselected(items=[item for item, kept in zip(items, chosen, strict=True) if not kept])
    items[:] = [item for item, kept in zip(items, chosen, strict=True) if kept]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[skipped] = []
    config.pluginmanager.register(Skips(config.stash[skipped]), "skips")


class Skips:
    """Collects why tests were skipped, of all workers."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = reasons

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and not hasattr(report, "wasxfail"):
            self.reasons.append(report.longrepr[2].removeprefix("Skipped: "))

    pytest_runtest_logreport = pytest_collectreport = note

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if needs.summary(self.reasons, nothing=NOTHING in os.environ)[1] and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines, fails = needs.summary(config.stash[skipped], nothing=NOTHING in os.environ)
    if lines:
        terminalreporter.section("what was skipped, and how to have it")
        for line in lines:
            terminalreporter.line(line)
    if fails:
        terminalreporter.line(f"error: {NOTHING} is set, and some of these can be installed", red=True)


@pytest.fixture
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working and temporary folder that no one else uses, for this process and those it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
