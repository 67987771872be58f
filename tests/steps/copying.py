"""The two ways in which files are copied within this machine: by rsync, and without it."""

import shlex
import shutil
import sys

import pytest

from jaccl_kernel.nodes import local_copy

WAYS = [pytest.param("rsync", marks=pytest.mark.needs("rsync")), "no rsync"]


def program(way: str) -> str:
    """What copies, for a sh script of a test that wraps it: both take rsync's options."""
    if way == "rsync":
        return shutil.which("rsync") or "rsync"
    return shlex.join([sys.executable, "-I", local_copy.__file__])


def stopping_half_way(way: str) -> str:
    """A sh script in the place of rsync: no file grows beyond 100 KB, then it tells progress for ever."""
    return f'(ulimit -f 200; {program(way)} "$@"); while sleep 0.1; do echo " 200000 50%"; done'
