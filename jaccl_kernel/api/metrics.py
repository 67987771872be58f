"""Metrics for Prometheus: the API's counters, and the engine's current status."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

TTFT_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
ITL_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
RECENT = 200  # answers in the percentiles of the status


class Metrics:
    """The metrics; `text` is their exposition.

    Args:
        status: returns the engine's status.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(status))
        self.requests = Counter(
            "jaccl_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self.cancelled = Counter(
            "jaccl_cancelled", "Answers whose client disconnected", registry=self._registry
        )
        self._ttft = Histogram(
            "jaccl_ttft_seconds",
            "Time to first token",
            buckets=TTFT_BUCKETS,
            registry=self._registry,
        )
        self._itl = Histogram(
            "jaccl_itl_seconds",
            "Inter-token latency",
            buckets=ITL_BUCKETS,
            registry=self._registry,
        )
        self._recent: list[float] = []  # TTFT of the last answers

    def answered(self, ttft: float | None, gaps: list[float]) -> None:
        """Record a choice that has ended: its TTFT and inter-token latencies in seconds."""
        if ttft is not None:
            self._ttft.observe(ttft)
            self._recent = [*self._recent[-RECENT + 1 :], ttft]
        for gap in gaps:
            self._itl.observe(gap)

    def ttft(self) -> dict[str, float | None]:
        """Return the median and the 95th percentile of the last answers' TTFT, in seconds."""
        ordered = sorted(self._recent)
        if not ordered:
            return {"p50": None, "p95": None}
        return {
            "p50": ordered[len(ordered) // 2],
            "p95": ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
        }

    def text(self) -> bytes:
        """Return Prometheus' text exposition."""
        return bytes(generate_latest(self._registry))


class _Engine(Collector):
    """The engine's status as gauges."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        status = self._status()
        yield _gauge("jaccl_ready", "1 when the server is ready", status["state"] == "ready")
        for key, text in (
            ("running", "Sequences in the batch"),
            ("queued", "Requests in the queue"),
            ("steps", "Steps of the batch since the start"),
            ("tokens", "Tokens generated since the start"),
            ("prompt_tokens", "Prompt tokens computed since the start"),
            ("tokens_per_s", "Tokens per second over the last seconds"),
        ):
            yield _gauge(f"jaccl_{key}", text, status.get(key, 0))
        for key, value in status.get("cache", {}).items():
            yield _gauge(f"jaccl_prompt_cache_{key}", f"Prompt cache: {key.replace('_', ' ')}", value)
        for key, text in (
            ("alive", "1 while the rank is alive"),
            ("step_ms", "Mean time of the rank's last steps in milliseconds"),
            ("memory_bytes", "Memory in use by MLX on the rank"),
            ("peak_memory_bytes", "Peak memory of MLX on the rank"),
        ):
            family = GaugeMetricFamily(f"jaccl_rank_{key}", text, labels=["rank", "name"])
            for rank in status.get("ranks", []):
                family.add_metric([str(rank["rank"]), rank["name"]], float(rank[key]))
            yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], float(value))
    return family
