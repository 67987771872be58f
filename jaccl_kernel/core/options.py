"""The options of every operation, each declared once: type, bounds, default and help.

The `jaccl` commands, the command lines of the rank programs, the forms of the panels and the checks are made
from these models (core/declare.py). What a rank program parses is a `…Program`; an operation adds what only
the host needs.
"""

import ipaddress
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jaccl_kernel.core.declare import Arg, Options, to_argv
from jaccl_kernel.core.errors import InputError

Backend = Literal["jaccl", "jaccl-ring", "ring"]
Sharding = Literal["tensor", "pipeline"]
BACKENDS: tuple[str, ...] = get_args(Backend)
SHARDINGS: tuple[str, ...] = get_args(Sharding)

DEFAULT_PROMPT = "Write 5 sentences about Thunderbolt RDMA."
FAST_SYNCH = "MLX_METAL_FAST_SYNCH"
FAST_SYNCH_RISK = (
    f"{FAST_SYNCH}=1 can be much faster on some systems, but MLX's documentation says that it can deadlock "
    "and wedge the GPU until a reboot, and recommends to leave it unset."
)

MODEL, PROMPT, MEASUREMENT, NETWORK, LIMITS, LAUNCH = GROUPS = (
    "Model", "Prompt", "Measurement", "Network", "Limits", "Launch",
)  # fmt: skip
"""The headings of the help, in order."""
_MODEL_NAME = Arg(
    metavar="DIR|NAME|HUB_ID",
    group=MODEL,
    default="the demo model",
    placeholder="demo, a folder, or ORG/NAME",
)
_PORT_BOUNDS = Field(ge=1, le=65535)


def parse_env(value: Any) -> Any:
    """`["K=V", …]` as a dictionary; a dictionary stays one.

    Raises:
        InputError: an entry has no `=`, or its name is no environment variable's.
    """
    if isinstance(value, Mapping):
        pairs = [(str(key), "=", str(one)) for key, one in value.items()]
    else:
        pairs = [str(entry).partition("=") for entry in value]
    for key, equals, text in pairs:
        if not equals or not re.fullmatch(r"\w+", key, re.ASCII):
            raise InputError(
                f"--env must be NAME=VALUE (got {key + equals + text!r})",
                fix="For example: --env HF_HOME=/models",
            )
    return {key: text for key, _, text in pairs}


def _split(value: Any) -> Any:
    """`"1,2"` as a list of texts."""
    return value.split(",") if isinstance(value, str) else value


def _not_blank(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ValueError("must not be empty")
    return value


def _plain_key(value: str | None) -> str | None:
    if value is not None and not (value.isascii() and value.isprintable() and len(value) >= 8):
        raise InputError(
            "the API key is too short or has characters other than printable ASCII",
            fix="Use at least 8 printable ASCII characters.",
        )
    return value


class ModelOptions(Options):
    """A model, and how it is split over the ranks."""

    model: Annotated[
        str | None,
        Field(description="Model: a folder, a name in ~/models, or a hub id in the local cache"),
        _MODEL_NAME,
    ] = None
    sharding: Annotated[
        Sharding, Field(description="How the model is split over the ranks"), Arg(group=MODEL)
    ] = "tensor"

    @property
    def given_model(self) -> str:
        """The model of a rank program, which always has one."""
        assert self.model, "ranks/__main__.py requires --model"
        return self.model


class JobOptions(Options):
    """How the ranks of a job are started."""

    backend: Annotated[
        Backend | None,
        Field(description="MLX's communication backend"),
        Arg(group=LAUNCH, default="the hostfile's"),
    ] = None
    env: Annotated[
        dict[str, str],
        BeforeValidator(parse_env),
        Field(description="Environment variable for every rank (repeatable)"),
        Arg(group=LAUNCH, metavar="K=V"),
    ] = Field(default_factory=dict)
    fast_synch: Annotated[
        bool,
        Field(description=f"Set {FAST_SYNCH}=1: can be faster, and can wedge the GPU"),
        Arg(group=LAUNCH, label=f"{FAST_SYNCH}=1"),
    ] = False
    python: Annotated[
        str | None,
        Field(description="Python interpreter on every node"),
        Arg(
            group=LAUNCH, metavar="PATH", default="this one",
            placeholder="Default: environment from notebook 02",
        ),
    ] = None  # fmt: skip
    starting_port: Annotated[
        int | None,
        _PORT_BOUNDS,
        Field(description="First port of mlx.launch"),
        Arg(group=LAUNCH, metavar="P", default="a free one if all ranks are local, else mlx.launch's"),
    ] = None

    def environment(self) -> dict[str, str]:
        """The variables for every rank."""
        return self.env | ({FAST_SYNCH: "1"} if self.fast_synch else {})


class BenchProgram(ModelOptions):
    """Load a model over the ranks and measure prefill and decode."""

    prompt: Annotated[
        str | None,
        AfterValidator(_not_blank),
        Field(description="Prompt text, put into the model's chat template"),
        Arg(group=PROMPT, label="Text", default=f"“{DEFAULT_PROMPT}”", rows=2),
    ] = None
    prompt_tokens: Annotated[
        int | None,
        Field(ge=1, description="Synthetic prompt of this many tokens instead of a text"),
        Arg(group=PROMPT),
    ] = None
    max_tokens: Annotated[int, Field(ge=1, description="Tokens to generate"), Arg(group=PROMPT)] = 128
    stop_at_eos: Annotated[bool, Field(description="End at the end-of-text token"), Arg(group=PROMPT)] = False
    repeats: Annotated[
        int,
        Field(ge=1, description="Measured runs per number of ranks, after a warm-up"),
        Arg(group=MEASUREMENT, label="Runs each"),
    ] = 3

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_tokens is not None:
            raise InputError("--prompt and --prompt-tokens exclude each other", fix="Give one of the two.")
        return self

    @property
    def text(self) -> str | None:
        """The prompt's text, or None for a synthetic prompt."""
        if self.prompt_tokens is not None:
            return None
        return DEFAULT_PROMPT if self.prompt is None else self.prompt


class BenchOptions(JobOptions, BenchProgram):
    """Measure prefill and decode over one or more numbers of ranks."""

    ranks: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        BeforeValidator(_split),
        Field(description="Numbers of ranks to compare"),
        Arg(metavar="1,2", group=MEASUREMENT, default="all hosts"),
    ] = None

    def program(self, model: str) -> tuple[str, ...]:
        """The rank program and its arguments, for the model as the ranks find it."""
        return ("bench", *to_argv(self.replace(model=model, prompt=self.text), BenchProgram))


# the file with the API key, on rank 0's node, of a server that plain mlx.launch starts
KEY_FILE_ENV = "JACCL_API_KEY_FILE"


class ServeProgram(ModelOptions):
    """Load a model over the ranks and serve it as an OpenAI-compatible API on rank 0."""

    alias: Annotated[
        str | None,
        Field(description="Model id in the API"),
        Arg(metavar="NAME", group=MODEL, default="the folder's name"),
    ] = None
    any_model: Annotated[
        bool,
        Field(description="Accept any model id in requests: the answer names the served one"),
        Arg(group=MODEL),
    ] = False
    host: Annotated[
        str,
        AfterValidator(_not_blank),
        Field(description="Address that rank 0 serves on; another one than loopback needs an API key"),
        Arg(metavar="ADDRESS", group=NETWORK, label="Address", placeholder="127.0.0.1, or rank 0's address"),
    ] = "127.0.0.1"
    port: Annotated[
        int, _PORT_BOUNDS, Field(description="Port that rank 0 serves on"), Arg(metavar="P", group=NETWORK)
    ] = 8080
    ctrl_port: Annotated[
        int,
        _PORT_BOUNDS,
        Field(description="Rank 0's control port, which the other ranks connect to"),
        Arg(metavar="P", group=NETWORK, label="Control port"),
    ] = 18080
    cors_origins: Annotated[
        tuple[str, ...],
        Field(description="Web origin that may call the API (repeatable)"),
        Arg(flag="--cors-origin", metavar="ORIGIN", group=NETWORK),
    ] = ()
    max_batch: Annotated[int, Field(ge=1, description="Sequences in one batch"), Arg(group=LIMITS)] = 32
    max_queue: Annotated[int, Field(ge=1, description="Requests that may wait"), Arg(group=LIMITS)] = 128
    context: Annotated[
        int | None,
        Field(ge=1, description="Tokens in one sequence"),
        Arg(group=LIMITS, default="the model's limit"),
    ] = None
    cache_gb: Annotated[
        float | None,
        Field(ge=0, description="Prompt-cache memory per rank, in GB"),
        Arg(group=LIMITS, metavar="GB", label="Prompt cache (GB)", default="a quarter of the free memory"),
    ] = None
    memory_gb: Annotated[
        float | None,
        Field(ge=0, description="Memory limit per rank, in GB"),
        Arg(group=LIMITS, metavar="GB", label="Memory (GB)", default="the system's limit"),
    ] = None
    prefill_step: Annotated[int, Field(ge=1, description="Prompt tokens per step"), Arg(group=LIMITS)] = 512

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port == self.ctrl_port:
            raise InputError(
                f"--port and --ctrl-port must differ (both are {self.port})", fix="Change one of them."
            )
        return self


class ServeOptions(JobOptions, ServeProgram):
    """Serve a model over all ranks as an OpenAI-compatible API."""

    api_key: Annotated[
        str | None,
        AfterValidator(_plain_key),
        Field(
            repr=False,
            description="API key that clients send; other users of this machine can see command lines",
        ),
        Arg(metavar="KEY", group=NETWORK, default="none on loopback, else a new one, shown once"),
    ] = None
    restart: Annotated[bool, Field(description="Restart automatically on failure"), Arg(group=LAUNCH)] = False
    stall_s: Annotated[
        float,
        Field(gt=0, description="Time that one step may take before the ranks count as stuck, in seconds"),
        Arg(flag="--stall", metavar="S", group=LIMITS, label="Stall (s)"),
    ] = 300.0

    def program(self, model: str) -> tuple[str, ...]:
        """The rank program and its arguments. The API key is not among them: it travels on stdin."""
        return ("serve", *to_argv(self.replace(model=model), ServeProgram))

    def with_api_key(self) -> Self:
        """These options, with a new API key if the address needs one and none is given."""
        if self.api_key is not None or is_loopback(self.host):
            return self
        return self.replace(api_key=f"jaccl-{secrets.token_urlsafe(24)}")


def is_loopback(host: str) -> bool:
    """Whether only programs on rank 0's own machine reach this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SmokeProgram(Options):
    """Join the group, prove it and time a small all_sum."""

    linger: Annotated[bool, Field(description="Stay up until the host ends the job")] = False


class ResidentProgram(Options):
    """Stay up as resident ranks for a notebook's cells."""


class SyncOptions(Options):
    """Copy a model to every node and verify the copies by checksum."""

    model: Annotated[
        str,
        Field(description="Model: a folder, a name in ~/models, a hub id in the local cache, or demo"),
        Arg(positional=True, placeholder="demo, a folder, or ORG/NAME"),
    ]
    source: Annotated[
        str | None,
        Field(description="Node to copy from, or localhost"),
        Arg(flag="--from", metavar="HOST", default="a node that has a complete copy"),
    ] = None
    dest: Annotated[
        str | None,
        Field(description="Folder on every node"),
        Arg(metavar="DIR", default="the same folder in each home, or ~/models/NAME"),
    ] = None
    check: Annotated[
        bool, Field(description="Copy nothing; show which nodes have the model, and whether it fits")
    ] = False
    rehash: Annotated[bool, Field(description="Read every file again instead of using saved checksums")] = (
        False
    )


class VerifyOptions(Options):
    """Check the cluster from ssh to correct sums on the ranks."""

    backend: Annotated[
        Backend | None,
        Field(description="MLX's communication backend"),
        Arg(default="the hostfile's"),
    ] = None
    python: Annotated[
        str | None,
        Field(description="Python interpreter on every node"),
        Arg(metavar="PATH", default="this one"),
    ] = None


class EnvironmentOptions(Options):
    """Check that every node has the same working Python environment, or create it."""

    python: Annotated[
        str | None,
        Field(description="Python interpreter to check"),
        Arg(metavar="PATH", default="~/jaccl-env/bin/python"),
    ] = None
    create: Annotated[
        bool, Field(description="Show the commands that create the environment on every node")
    ] = False
    path: Annotated[
        str | None,
        Field(description="Folder of the new environment"),
        Arg(metavar="DIR", default="~/jaccl-env"),
    ] = None
    yes: Annotated[bool, Field(description="With --create: run the commands")] = False

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.create and (self.yes or self.path):
            raise InputError("--yes and --path need --create", fix="Add --create, or remove them.")
        if self.create and self.python:
            raise InputError(
                "--python and --create exclude each other: a new environment has its own interpreter",
                fix="Use --path to choose the folder of the new environment.",
            )
        return self
