"""The steps that a person has marked as done on each Mac, saved in one small JSON file.

A tick is a reminder, not a proof: only a scan marks a Mac as ready. The file is in the cache folder, where
every notebook and terminal finds it, and losing it does little harm. A step is identified by its text: when
the text changes (with a macOS version), the old tick no longer applies.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from jaccl_kernel.core.files import write_text
from jaccl_kernel.core.paths import cache_dir

Ticks = Mapping[str, frozenset[str]]
"""The completed steps, by the Mac's name."""


def checklist_file(*, rehearsal: bool) -> Path:
    """Return the path of the file; simulated Macs have a file of their own."""
    return cache_dir() / ("enable-rehearsal.json" if rehearsal else "enable.json")


def load(*, rehearsal: bool) -> Ticks:
    """Return all ticks; none if the file cannot be read."""
    try:
        saved = json.loads(checklist_file(rehearsal=rehearsal).read_text(encoding="utf-8"))
        return {
            mac: frozenset(step for step in steps if isinstance(step, str))
            for mac, steps in saved["ticks"].items()
        }
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return {}


def save(ticks: Ticks, *, rehearsal: bool) -> None:
    """Save the ticks atomically.

    Raises:
        JacclError: the file cannot be written.
    """
    saved = {mac: sorted(steps) for mac, steps in sorted(ticks.items()) if steps}
    text = json.dumps({"schema": 1, "ticks": saved}, ensure_ascii=False, indent=1)
    write_text(checklist_file(rehearsal=rehearsal), text)


def tick(mac: str, step: str, *, done: bool = True, rehearsal: bool) -> Ticks:
    """Mark a step on a Mac as done, or not done. Returns all ticks.

    Raises:
        JacclError: the file cannot be written.
    """
    ticks = dict(load(rehearsal=rehearsal))
    before = ticks.get(mac, frozenset())
    ticks[mac] = before | {step} if done else before - {step}
    save(ticks, rehearsal=rehearsal)
    return ticks


def forget(macs: frozenset[str], *, rehearsal: bool) -> Ticks:
    """Remove the ticks of these Macs, which have no remaining step. Returns all ticks.

    Raises:
        JacclError: the file cannot be written.
    """
    ticks = load(rehearsal=rehearsal)
    if not macs & set(ticks):
        return ticks
    remaining = {mac: steps for mac, steps in ticks.items() if mac not in macs}
    save(remaining, rehearsal=rehearsal)
    return remaining
