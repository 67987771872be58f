"""A load test of a running server: concurrent clients, each with one request after the other.

Each point of the grid (clients x prompt tokens x new tokens) is timed at the clients: TTFT, inter-token
latency, tokens per second of wall time. Prompts differ from their first token on, so that no prompt cache is
used. Works with any server of OpenAI's API. Contains no widgets.
"""

import asyncio
import datetime as dt
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import InputError, JobError
from jaccl_kernel.core.events import HOST, Event, PointMeasured, Stage
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.notebook.prompting import Server
from jaccl_kernel.report import record
from jaccl_kernel.report.record import LoadReport

CONNECT_S = 10.0
READ_S = 600.0  # between two chunks of an answer
SAMPLES = 2000  # inter-token latencies to keep for the figure
SENTENCE = "The ferry crosses the strait at noon and the tide is already turning. "


@dataclass(frozen=True)
class Load:
    """The load: every combination of the axes.

    Args:
        clients: numbers of concurrent clients.
        prompt_tokens: approximate lengths of the prompts.
        max_tokens: maximum lengths of the answers.
        requests: requests per client, one after the other.
    """

    clients: Sequence[int] = (1, 8)
    prompt_tokens: Sequence[int] = (64,)
    max_tokens: Sequence[int] = (64,)
    requests: int = 2

    def points(self) -> list[tuple[int, int, int]]:
        """(clients, prompt tokens, new tokens) of each point, in order.

        Raises:
            InputError: an empty axis, or a number below 1.
        """
        axes = (self.prompt_tokens, self.max_tokens, self.clients)
        if not all(axes):
            raise InputError("an axis of the load is empty", fix="Give each axis at least one number.")
        if min(*self.clients, *self.prompt_tokens, *self.max_tokens, self.requests) < 1:
            raise InputError("every number of the load must be at least 1")
        return [(clients, prompt, new) for prompt, new, clients in itertools.product(*axes)]


@dataclass
class Timed:
    """One streamed answer: TTFT and inter-token latencies in seconds, and numbers of tokens."""

    ttft: float | None = None
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0


class Refused(Exception):
    """The server answered with an error; its message."""


async def stream_one(client: httpx.AsyncClient, prompt: str, max_tokens: int) -> Timed:
    """Stream one greedy chat answer and time it.

    Raises:
        Refused: an error status, or an error event.
        httpx.HTTPError: the connection failed.
    """
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    timed = Timed()
    began = last = time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code}: {_message(await answer.aread())}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise Refused(str(event["error"]["message"]))
            if usage := event.get("usage"):
                timed.tokens, timed.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            deltas = [one["delta"] for one in event["choices"]]
            if not any(one.get("content") or one.get("reasoning_content") for one in deltas):
                continue
            now = time.perf_counter()
            if timed.ttft is None:
                timed.ttft = now - began
            else:
                timed.gaps.append(now - last)
            last = now
    return timed


class LoadTest:
    """One run of a Load; `points` contains the measurements so far.

    Args:
        load: the load.
        at: the server.
        on_event: called with a Stage and a PointMeasured for each point.
    """

    def __init__(self, load: Load, at: Server, on_event: OnEvent = ignore) -> None:
        self.load = load
        self.at = at
        self.points: list[dict[str, Any]] = []
        self._on_event = on_event
        self._served: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    async def run(self) -> LoadReport:
        """Measure every point and save the record; a cancellation keeps the measured points.

        Raises:
            InputError: the load is invalid.
            JobError: the server does not answer.
        """
        wanted = self.load.points()
        stopped = False
        try:
            async with self._client(max(self.load.clients)) as client:
                per_token = await self._calibrate(client)
                for number, (clients, prompt, new) in enumerate(wanted):
                    text = f"point {number + 1} of {len(wanted)}: {clients} clients, {prompt} + {new} tokens"
                    self._on_event(Event(HOST, Stage("load", text, number / len(wanted))))
                    point = await self._point(client, clients, prompt, new, per_token)
                    self.points.append(point)
                    self._on_event(Event(HOST, PointMeasured(point)))
        except asyncio.CancelledError:
            if not self.points:
                raise
            stopped = True
        from jaccl_kernel.report import page  # takes half a second to import

        found = self._record(stopped)
        return LoadReport(found, *page.save(found))

    async def _point(
        self, client: httpx.AsyncClient, clients: int, prompt_tokens: int, max_tokens: int, per_token: float
    ) -> dict[str, Any]:
        timed: list[Timed] = []
        failures: list[str] = []

        async def one_client() -> None:
            for _ in range(self.load.requests):
                text = self._prompt(int(prompt_tokens / per_token))
                try:
                    timed.append(await stream_one(client, text, max_tokens))
                except (Refused, httpx.HTTPError) as error:
                    failures.append(f"{error}" or type(error).__name__)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one_client())
        wall = time.perf_counter() - began
        first = sorted(one.ttft for one in timed if one.ttft is not None)
        gaps = sorted(gap for one in timed for gap in one.gaps)
        tokens = sum(one.tokens for one in timed)
        return {
            "clients": clients,
            "prompt_tokens": prompt_tokens,
            "prompt_tokens_mean": statistics.mean(one.prompt_tokens for one in timed) if timed else None,
            "max_tokens": max_tokens,
            "requests": clients * self.load.requests,
            "failed": len(failures),
            "failures": sorted(set(failures)),
            "tokens": tokens,
            "wall_s": wall,
            "tps": tokens / wall,
            "ttft_s": _percentiles(first),
            "itl_s": _percentiles(gaps),
            "samples": {"ttft_s": first, "itl_s": gaps[:: max(1, len(gaps) // SAMPLES)]},
        }

    def _client(self, clients: int) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.at.api_key}"} if self.at.api_key else {}
        return httpx.AsyncClient(
            base_url=self.at.url,
            timeout=httpx.Timeout(CONNECT_S, read=READ_S, pool=None),
            limits=httpx.Limits(max_connections=clients),
            headers=headers,
            trust_env=False,
        )

    async def _calibrate(self, client: httpx.AsyncClient) -> float:
        """Tokens per sentence on this server, from two short requests; also reads the server's status."""
        try:
            status = await client.get("/status")
            body = status.json() if status.status_code == 200 else {}
            self._served = {"served": body.get("served", {}), "ranks": body.get("ranks", [])}
            short, long = [
                (await stream_one(client, self._prompt(count), 1)).prompt_tokens for count in (1, 9)
            ]
        except (Refused, httpx.HTTPError, ValueError) as error:
            raise JobError(
                f"{self.at.name} did not answer: {error or type(error).__name__}",
                fix="See `jaccl status`, or start it in 06_serve.",
            ) from error
        return max(1.0, (long - short) / 8)

    def _prompt(self, sentences: int) -> str:
        return f"{next(self._numbers)}. " + SENTENCE * max(1, sentences)

    def _record(self, stopped: bool) -> dict[str, Any]:
        served = self._served.get("served", {})
        return {
            "schema": record.SCHEMA,
            "kind": "load",
            "stopped": stopped,
            "points": self.points,
            "provenance": {
                "date": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
                "workbench": __version__,
                "rehearsal": bool(served.get("rehearsal")),
                "hosts": [str(one.get("name", "")) for one in self._served.get("ranks", [])] or [self.at.url],
                "ranks": self._served.get("ranks", []),
                "model": {"name": served.get("model")},
                "server": served,
                "url": self.at.url,
                "load": asdict(self.load),
            },
        }


def _percentiles(ordered: Sequence[float]) -> dict[str, float | None]:
    return {f"p{one}": record.percentile(ordered, one) for one in (50, 95, 99)}


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
