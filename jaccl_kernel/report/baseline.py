"""The baselines of cables: one file with the first measurement of each cable, and verdicts on later ones.

A cable is identified by its two hosts, the backend, and the RDMA devices of its ends in the hostfile, so that
a moved cable is another cable. Its first measurement is its baseline until `accept` replaces it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.core.files import write_text
from jaccl_kernel.core.paths import results_dir

# between runs over the same cable; latency varies more than bandwidth
LATENCY_TOLERANCE = 0.5
BANDWIDTH_TOLERANCE = 0.25


def baseline_file() -> Path:
    """The path of the baselines, next to the records."""
    return results_dir() / "cable-baselines.json"


def judge(
    collectives: Mapping[str, Any], names: Sequence[str], rdma: Sequence[Sequence[Any]] = ()
) -> list[dict[str, Any]]:
    """Compare each pair of ranks with its baseline; a first measurement becomes the baseline.

    Args:
        collectives: `backend`, `date`, and the `pairs` of ranks/collectives.py (bytes, seconds, bytes per
            second).
        names: the hosts' names in rank order.
        rdma: the hostfile's matrix, whose rows may be empty.

    Returns one verdict per cable: `cable` (its name), `pair`, `verdict` ("first", "as before", "slower",
    "faster"), `latency_s` (of the smallest message), `bandwidth` (the highest, in bytes per second), the same
    of the `baseline` with its date, and `told` (a sentence).

    Raises:
        JacclError: the baselines cannot be written.
    """
    known = _read()
    judged = []
    for pair, measured in _pairs(collectives["pairs"]).items():
        cable = _cable(pair, names, str(collectives["backend"]), rdma)
        now = {"date": collectives["date"], **measured}
        first = cable not in known
        before = known.setdefault(cable, now)
        verdict = "first" if first else _verdict(now, before)
        text = _sentence(cable, verdict, now, before)
        judged.append(
            {"cable": cable, "pair": list(pair), "verdict": verdict, **now, "baseline": before, "told": text}
        )
    write_text(baseline_file(), json.dumps(known, indent=1, ensure_ascii=False))
    return judged


def accept(judged: Sequence[Mapping[str, Any]]) -> None:
    """Make these measurements the new baselines.

    Raises:
        JacclError: the baselines cannot be written.
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
    measured = f"{cable}: {now['latency_s'] * 1e6:.1f} us, {now['bandwidth'] / 1e9:.2f} GB/s"
    if verdict == "first":
        return f"{measured}. First measurement, which is now the baseline."
    baseline = f"{before['latency_s'] * 1e6:.1f} us and {before['bandwidth'] / 1e9:.2f} GB/s"
    return f"{measured}: {verdict} (baseline of {before['date'][:10]}: {baseline})."


def _read() -> dict[str, dict[str, Any]]:
    try:
        stored = json.loads(baseline_file().read_text(encoding="utf-8"))
        return {cable: one for cable, one in stored.items() if {"date", "latency_s", "bandwidth"} <= set(one)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # missing or unreadable: the next measurement is the baseline
