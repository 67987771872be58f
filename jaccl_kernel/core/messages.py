"""Messages: what the host sends to the ranks. A tagged union of frozen dataclasses, and its line format.

A message is one JSON object, split into short numbered lines, since a terminal on the way may pass only about
1 KB per line (macOS). `Call` is what the host asks of all resident ranks at once; ipyparallel carries it.
"""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from jaccl_kernel.core.codec import TaggedUnion
from jaccl_kernel.core.results import Reference

LINE_LIMIT = 900  # characters per line, below the limit of a macOS terminal

_PART = re.compile(r"^>(\d+)/(\d+) (.*)$")


class Message:
    """A message to a rank."""

    KIND: ClassVar[str] = ""  # its tag on the wire


@dataclass(frozen=True)
class ServeFacts:
    """What only the host knows of a server: whether the Macs are simulated, and the model's digest."""

    rehearsal: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class Payload:
    """Inputs of a rank program that do not belong on a command line.

    For bench, the tokens to score; for serve, the API key, the nodes' names by rank, and facts.
    """

    reference: Reference | None = None
    api_key: str | None = None
    names: tuple[str, ...] = ()
    facts: ServeFacts = field(default_factory=ServeFacts)


@dataclass(frozen=True)
class Go(Message):
    """All ranks are ready: join as `size` ranks within `join_deadline` seconds, then run the program.

    `size` is None only without a host.
    """

    KIND = "go"
    join_deadline: float
    payload: Payload = field(default_factory=Payload)
    size: int | None = None


@dataclass(frozen=True)
class Ack(Message):
    """The host has read everything: a finished rank may exit."""

    KIND = "ack"


@dataclass(frozen=True)
class Stop(Message):
    """End the server, or an idle rank."""

    KIND = "stop"


@dataclass(frozen=True)
class WorkerDied(Message):
    """To rank 0 of a server: worker `rank` has died; `why`."""

    KIND = "died"
    rank: int
    why: str


@dataclass(frozen=True)
class TemporaryFiles(Message):
    """Files that the launch has created on the rank's machine; the rank removes them when it exits."""

    KIND = "litter"
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Connect(Message):
    """To a resident rank: the connection info of the ipyparallel controller, which contains a key."""

    KIND = "connect"
    connection: dict[str, Any]


@dataclass(frozen=True)
class Interrupt(Message):
    """To resident ranks: stop call number `call` and all earlier ones."""

    KIND = "interrupt"
    call: int


@dataclass(frozen=True)
class End(Message):
    """To resident ranks: exit."""

    KIND = "end"


class Call:
    """What the host asks of all resident ranks at once; ipyparallel carries it and its result."""


@dataclass(frozen=True)
class LoadModel(Call):
    """Load a model folder, split by "tensor" or "pipeline"; returns a LoadResult."""

    model: str
    sharding: str = "tensor"


@dataclass(frozen=True)
class Prompt(Call):
    """Answer one OpenAI request body; the answer arrives as AnswerChunk and AnswerEnd events."""

    body: dict[str, Any]


@dataclass(frozen=True)
class MeasureBench(Call):
    """Run `ranks bench` with these options on the loaded model; returns a BenchResult."""

    options: dict[str, Any]
    reference: Reference | None = None


@dataclass(frozen=True)
class MeasureBatch(Call):
    """Generate `batch` sequences of `prompt_tokens` + `max_tokens` at once; returns a BatchResult."""

    batch: int
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class MeasureNeedle(Call):
    """Ask for a number hidden in a prompt of `prompt_tokens`; returns a NeedleResult."""

    prompt_tokens: int


@dataclass(frozen=True)
class MeasureBandwidth(Call):
    """Measure each rank's memory bandwidth; returns bytes per second."""


@dataclass(frozen=True)
class MeasureCollectives(Call):
    """Time collectives at these sizes in bytes, `repeats` times (0: automatic); returns CollectivesResult."""

    sizes: tuple[int, ...]
    repeats: int = 0


@dataclass(frozen=True)
class StartServer(Call):
    """Serve the loaded model with these options of `ranks serve` until stopped."""

    payload: Payload
    options: dict[str, Any]


WireMessage = Go | Ack | Stop | WorkerDied | TemporaryFiles | Connect | Interrupt | End
UNION: TaggedUnion[Message] = TaggedUnion(get_args(WireMessage))


def encode_message(message: Message) -> list[str]:
    """The message as short ASCII lines, without newlines."""
    text = UNION.dumps(message)
    pieces = [text[i : i + LINE_LIMIT] for i in range(0, len(text), LINE_LIMIT)]
    return [f">{number}/{len(pieces)} {piece}" for number, piece in enumerate(pieces, 1)]


class MessageReader:
    """Joins the lines of `encode_message`; lines of another form are ignored."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def feed(self, line: str) -> Message | None:
        """Take one line; returns the message once its last line has arrived, else None."""
        found = _PART.match(line.rstrip("\r\n"))
        if found is None:
            return None
        number, total = int(found[1]), int(found[2])
        if number == 1:
            self._pieces = []
        elif number != len(self._pieces) + 1:  # a line was lost, so this message is incomplete
            self._pieces = []
            return None
        self._pieces.append(found[3])
        if number < total:
            return None
        text, self._pieces = "".join(self._pieces), []
        return UNION.loads(text)
