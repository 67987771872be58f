"""One job at a time on a machine: a second would share devices, ports and cores, and spoil both.

The lock is a file per node, held by `flock` for as long as the job lives: the kernel lets go of it when its
holder dies, however it dies. It covers the jobs of this machine and user; others are not seen.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence

from jaccl_kernel.errors import Busy, JobError
from jaccl_kernel.paths import cache_dir


@contextlib.contextmanager
def hold(hosts: Sequence[str], what: str) -> Iterator[None]:
    """Hold the locks of these hosts (ssh names) for as long as the block runs.

    Raises:
        Busy: another job holds one of them: says which, since when, and its process id.
    """
    with contextlib.ExitStack() as stack:
        for host in sorted(set(hosts)):
            stack.enter_context(_hold_one(host, what))
        yield


@contextlib.contextmanager
def _hold_one(host: str, what: str) -> Iterator[None]:
    path = cache_dir() / "locks" / (re.sub(r"[^\w.-]", "_", host) + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JobError(
            f"cannot write the lock: {error.strerror}",
            where=str(path),
            fix="Make the folder writable, free some space, or set JACCL_CACHE to another folder.",
        ) from error
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(
                f"another job is running here: {_holder(file.read())}",
                where=host,
                fix="Wait for it to end, or stop it: two at once would share ports, devices and cores.",
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "what": what, "since": time.time()}))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        told = json.loads(text)
        since = time.strftime("%H:%M:%S", time.localtime(told["since"]))
    except (ValueError, KeyError, TypeError):
        return "unknown"
    return f"{told['what']} (process {told['pid']}, since {since})"
