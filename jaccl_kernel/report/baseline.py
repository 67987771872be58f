"""What each cable did the first time, and whether it still does: one file of baselines, and a verdict each.

A cable is known by the two hosts that it joins, the backend, and the RDMA devices of its ends where the
hostfile names them: a cable that was moved is another cable. The first measurement of one is its baseline
until `accept` takes a newer one in its place.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.paths import results_dir
from jaccl_kernel.saved import write_text

# of one and the same cable from run to run; small messages vary more than large ones
LATENCY_TOLERANCE = 0.5
BANDWIDTH_TOLERANCE = 0.25


def baseline_file() -> Path:
    """Where the baselines are kept: beside the records."""
    return results_dir() / "cable-baselines.json"


def judge(
    collectives: Mapping[str, Any], names: Sequence[str], rdma: Sequence[Sequence[Any]] = ()
) -> list[dict[str, Any]]:
    """Hold each pair of ranks against its baseline; one that has none yet becomes its own.

    Args:
        collectives: `backend`, `date`, and `pairs` as ranks/collectives.py times them (bytes, seconds, bytes
            a second).
        names: the ranks' hosts.
        rdma: the hostfile's matrix; its rows may be empty.

    Returns one verdict a cable: `cable` (its name), `pair`, `verdict` ("first", "as before", "slower",
    "faster"), `latency_s` (of the smallest message), `bandwidth` (the best, bytes a second), the same of the
    `baseline` with its date, and `told` (a sentence).

    Raises:
        JacclError: the baselines cannot be kept.
    """
    known = _read()
    judged = []
    for pair, measured in _pairs(collectives["pairs"]).items():
        cable = _cable(pair, names, str(collectives["backend"]), rdma)
        now = {"date": collectives["date"], **measured}
        first = cable not in known
        before = known.setdefault(cable, now)
        verdict = "first" if first else _verdict(now, before)
        told = _sentence(cable, verdict, now, before)
        judged.append(
            {"cable": cable, "pair": list(pair), "verdict": verdict, **now, "baseline": before, "told": told}
        )
    write_text(baseline_file(), json.dumps(known, indent=1, ensure_ascii=False))
    return judged


def accept(judged: Sequence[Mapping[str, Any]]) -> None:
    """Take these measurements as the baselines from now on.

    Raises:
        JacclError: they cannot be kept.
    """
    known = _read()
    for one in judged:
        known[one["cable"]] = {name: one[name] for name in ("date", "latency_s", "bandwidth")}
    write_text(baseline_file(), json.dumps(known, indent=1, ensure_ascii=False))


def _pairs(measured: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], dict[str, float]]:
    by_pair: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for one in measured:
        by_pair.setdefault((one["pair"][0], one["pair"][1]), []).append(one)
    return {
        pair: {
            "latency_s": min(sizes, key=lambda one: int(one["bytes"]))["seconds"],
            "bandwidth": max(one["algbw"] for one in sizes),
        }
        for pair, sizes in by_pair.items()
    }


def _cable(pair: tuple[int, int], names: Sequence[str], backend: str, rdma: Sequence[Sequence[Any]]) -> str:
    ends = []
    for one, other in (pair, pair[::-1]):
        cell = rdma[one][other] if backend.startswith("jaccl") and rdma and rdma[one] else None
        devices = [cell] if isinstance(cell, str) else list(cell or ())
        ends.append(" ".join([names[one], *devices]))
    return f"{ends[0]} – {ends[1]} ({backend})"


def _verdict(now: Mapping[str, float], before: Mapping[str, float]) -> str:
    latency = now["latency_s"] / before["latency_s"]
    speed = now["bandwidth"] / before["bandwidth"]
    if latency > 1 + LATENCY_TOLERANCE or speed < 1 - BANDWIDTH_TOLERANCE:
        return "slower"
    if latency < 1 / (1 + LATENCY_TOLERANCE) or speed > 1 / (1 - BANDWIDTH_TOLERANCE):
        return "faster"
    return "as before"


def _sentence(cable: str, verdict: str, now: Mapping[str, float], before: Mapping[str, Any]) -> str:
    told = f"{cable}: {now['latency_s'] * 1e6:.1f} us, {now['bandwidth'] / 1e9:.2f} GB/s"
    if verdict == "first":
        return f"{told}. Measured for the first time: this is its baseline."
    was = f"{before['latency_s'] * 1e6:.1f} us and {before['bandwidth'] / 1e9:.2f} GB/s"
    return f"{told}: {verdict}, against {was} on {before['date'][:10]}."


def _read() -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(baseline_file().read_text(encoding="utf-8"))
        return {cable: one for cable, one in told.items() if {"date", "latency_s", "bandwidth"} <= set(one)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # none yet, or none that can be read: measured afresh
