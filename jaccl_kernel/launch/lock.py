"""One job at a time per node: a second job would share devices, ports and cores, and both would suffer.

The lock is one file per node, held with `flock` while the job runs; the operating system releases it when the
process ends for any reason. It covers the jobs of this user on this machine only.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence

from jaccl_kernel.core.errors import Busy, JobError
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.launch import servers


@contextlib.contextmanager
def hold(hosts: Sequence[str], what: str) -> Iterator[None]:
    """Hold the locks of these hosts (ssh names) for the duration of the block.

    Raises:
        Busy: another job holds one of them; the message has its name, start time and process id.
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
            f"cannot write the lock file: {error.strerror}",
            where=str(path),
            fix="Make the folder writable, free disk space, or set JACCL_CACHE to another folder.",
        ) from error
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder, stop = _describe_holder(file.read())
            raise Busy(
                f"another job is running on this node: {holder}",
                where=host,
                fix=f"Wait for it to end, or stop it{stop}: two jobs would share ports, devices and cores.",
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "what": what, "since": time.time()}))
        file.flush()
        yield


def _describe_holder(text: str) -> tuple[str, str]:
    """The holder of a lock, from the content of the lock file, and the command that stops it ("" if none)."""
    try:
        holder = json.loads(text)
        since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
        server = servers.of_process(holder["pid"])
        process = f"{f'{server}, ' if server else ''}process {holder['pid']}"
        described = f"{holder['what']} ({process}, since {since})"
    except (ValueError, KeyError, TypeError):
        return "unknown", ""
    return described, f" (jaccl stop {server})" if server else ""
