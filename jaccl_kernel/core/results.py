"""What the ranks measure, as the host reads it. A record's JSON is made of these in `report/record.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Power:
    """A machine's name, and the mean power in watts that it drew; None if macOS does not report it."""

    machine: str
    watts: float | None = None


@dataclass(frozen=True)
class BenchRun:
    """One run: token ids, seconds to the first token, and seconds between consecutive tokens."""

    tokens: tuple[int, ...]
    ttft_s: float
    itl_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Seconds from the prompt to the last token."""
        return self.ttft_s + sum(self.itl_s)


@dataclass(frozen=True)
class Score:
    """K token ids and their log-probabilities (nats) at each of T positions; `dtype` of the logits."""

    top: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    dtype: str


@dataclass(frozen=True)
class Reference:
    """The T tokens to score, and K token ids at each position; None for the most likely ones."""

    tokens: tuple[int, ...]
    top: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class BatchTimes:
    """A batch: tokens of all sequences, seconds in total and until all had a token, tokens/s after that."""

    tokens: int
    wall_s: float
    ttft_s: float
    decode_tps: float | None = None


@dataclass(frozen=True)
class BatchResult:
    """A rank's part of a batch: its times, peak memory in bytes, KV cache in bytes per token, power."""

    times: BatchTimes
    peak_memory_bytes: int
    token_bytes: float
    power: Power


@dataclass(frozen=True)
class LoadResult:
    """A rank's load: seconds (0 if the model was loaded), and bytes of active memory."""

    load_s: float
    memory_bytes: int


@dataclass(frozen=True)
class NeedleResult:
    """Whether the answer contains the number that was hidden in a long prompt (`prompt_tokens`, `tokens`)."""

    text: str
    prompt_tokens: int
    tokens: int
    expected: str
    found: bool


@dataclass(frozen=True)
class CollectiveRow:
    """One operation at one size: bytes, median seconds, algorithm and bus bandwidth in bytes/s, repeats."""

    op: str
    bytes: int
    seconds: float
    algbw: float
    busbw: float
    repeats: int


@dataclass(frozen=True)
class PairRow(CollectiveRow):
    """One size between two ranks; `seconds` is half of a round trip."""

    pair: tuple[int, int]


@dataclass(frozen=True)
class CollectivesResult:
    """The rows of the whole group and of each pair; `skipped`: pairs that the backend does not connect."""

    group: tuple[CollectiveRow, ...]
    pairs: tuple[PairRow, ...]
    skipped: tuple[tuple[int, int], ...] = ()
