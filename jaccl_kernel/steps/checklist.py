"""What a person has done at each Mac, kept across restarts in one small JSON file.

A tick is a memory aid and never a proof: the scan alone turns a light green. So the file lies in the cache
folder, where every notebook and terminal finds it whatever its working folder, and losing it costs little.
A step is known by its text: when macOS, and with it the way, changes, the old ticks no longer count.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaccl_kernel.errors import JacclError
from jaccl_kernel.paths import cache_dir

Ticks = Mapping[str, frozenset[str]]
"""The steps that are done, by the Mac's name."""


def checklist_file(*, rehearsal: bool) -> Path:
    """Where the ticks are kept: those of simulated Macs never mix with those of real ones."""
    return cache_dir() / ("enable-rehearsal.json" if rehearsal else "enable.json")


def load(*, rehearsal: bool) -> Ticks:
    """All ticks; those of a file that cannot be read count as not made."""
    try:
        told = json.loads(checklist_file(rehearsal=rehearsal).read_text(encoding="utf-8"))
        return {
            mac: frozenset(step for step in steps if isinstance(step, str))
            for mac, steps in told["ticks"].items()
        }
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return {}


def save(ticks: Ticks, *, rehearsal: bool) -> None:
    """Keep the ticks, whole or not at all.

    Raises:
        JacclError: the file cannot be written.
    """
    path = checklist_file(rehearsal=rehearsal)
    told = {mac: sorted(steps) for mac, steps in sorted(ticks.items()) if steps}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"schema": 1, "ticks": told}, file, ensure_ascii=False, indent=1)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        fix = "Free some space there, or set JACCL_CACHE to another folder."
        raise JacclError(
            f"the checklist cannot be kept: {error.strerror}", where=str(path), fix=fix
        ) from error


def tick(mac: str, step: str, *, done: bool = True, rehearsal: bool) -> Ticks:
    """Note that a step at a Mac is done, or is not done after all; all ticks as they are now.

    Raises:
        JacclError: the file cannot be written.
    """
    ticks = dict(load(rehearsal=rehearsal))
    before = ticks.get(mac, frozenset())
    ticks[mac] = before | {step} if done else before - {step}
    save(ticks, rehearsal=rehearsal)
    return ticks


def forget(macs: frozenset[str], *, rehearsal: bool) -> Ticks:
    """Drop the ticks of these Macs, which have no step left; all ticks as they are now.

    Raises:
        JacclError: the file cannot be written.
    """
    ticks = load(rehearsal=rehearsal)
    if not macs & set(ticks):
        return ticks
    kept = {mac: steps for mac, steps in ticks.items() if mac not in macs}
    save(kept, rehearsal=rehearsal)
    return kept
