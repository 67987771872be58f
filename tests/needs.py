"""Tests that need a program of the system: skipped where it is missing; a line at the end says how many.

`@pytest.mark.needs("rsync")` says it of a test; the marks `sshd` and `browser` imply what they need.
"""

import os
import shutil
import sys
from collections import Counter
from ctypes.util import find_library
from pathlib import Path

import pytest

from jaccl_kernel.core.system_tools import install_command

IMPLIED = {"sshd": ("ssh", "sshd"), "browser": ("chromium", "libatomic")}
PACKAGES = {
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "libatomic": "libatomic1",
    "dot": "graphviz",
    "ps": "procps",
}
NAMES = {
    "chromium": (
        "chromium",
        "chromium-browser",
        "google-chrome",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    )
}


def find(tool: str) -> str | None:
    """Where a program is, if it is installed; servers are in folders that an ordinary user's PATH lacks."""
    if tool == "libatomic":  # a library: what drives the browser needs it on Linux
        return find_library("atomic") if sys.platform == "linux" else tool
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    found = (shutil.which(name, path=path) for name in NAMES.get(tool, (tool,)))
    return next(filter(None, found), None)


def path_without(tool: str, folder: Path) -> str:
    """A PATH (that folder) that leads to every program that ours leads to, but for one."""
    for place in filter(Path.is_dir, map(Path, os.get_exec_path())):
        for program in place.iterdir():
            if program.name != tool and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def fix(tool: str) -> str:
    """The command that installs it here."""
    if tool == "chromium" and sys.platform == "darwin":
        return "brew install --cask google-chrome"
    return install_command(PACKAGES.get(tool, tool))


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup(item: pytest.Item) -> None:
    implied = [tool for mark, tools in IMPLIED.items() if item.get_closest_marker(mark) for tool in tools]
    named = [tool for mark in item.iter_markers("needs") for tool in mark.args]
    for tool in dict.fromkeys([*implied, *named]):
        if find(tool) is None:
            pytest.skip(f"{tool} is not installed ({fix(tool)})")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        told = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"Skipped {reasons.total()} tests: {told}")
