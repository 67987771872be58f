"""What a job is, as data, and the one place that builds its mlx.launch command line and environment.

Starts nothing. The same arguments make both our own job and the plain `mlx.launch …` text that does the same.
"""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError
from jaccl_kernel.wire import WIRE_ENV

BACKENDS = ("jaccl", "jaccl-ring", "ring")
LOCAL = "127.0.0.1"  # the only name that mlx.launch runs on this machine, without ssh

# Ranks must not go to a model hub in the middle of a launch: one that reaches it and one that does not part.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

FAST_SYNCH = "MLX_METAL_FAST_SYNCH"
NO_FAST_SYNCH = {FAST_SYNCH: "0"}  # off for MLX as if unset, and not what this process may have inherited
FAST_SYNCH_RISK = (
    f"{FAST_SYNCH}=1 can be much faster on some set-ups, but MLX's documentation says that it can deadlock "
    "and wedge the GPU until a reboot, and advises to leave it unset."
)

# Inherited launch variables would join a job to another one, or override its own (JACCL_* wins over MLX_*).
LAUNCH_VARIABLES = (
    "MLX_RANK",
    "MLX_HOSTFILE",
    "MLX_IBV_DEVICES",
    "MLX_JACCL_COORDINATOR",
    "MLX_JACCL_RING",
    "MLX_RING_VERBOSE",
    "MLX_WORLD_SIZE",
    "JACCL_RANK",
    "JACCL_IBV_DEVICES",
    "JACCL_COORDINATOR",
    "JACCL_RING",
    "NCCL_HOST_IP",
    "NCCL_PORT",
)


@dataclass(frozen=True)
class JobSpec:
    """A program to run on every host of a hostfile.

    Args:
        hostfile: the ranks of this job, in order (see `Hostfile.subset`).
        program: what follows `-m jaccl_kernel.ranks`, the program's name first.
        backend: mlx.launch's `--backend`.
        python: the interpreter on every node.
        env: variables for every rank; a value here wins over the hostfile's `envs`, which win over our
            defaults.
        rank_env: variables for each rank that runs on this machine, one mapping a rank (a simulated Mac's
            home, say); empty for none.
        starting_port: mlx.launch's `--starting-port`: the coordinator's (jaccl), or rank 0's first (ring).
    """

    hostfile: Hostfile
    program: tuple[str, ...]
    backend: str
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    rank_env: tuple[Mapping[str, str], ...] = ()
    starting_port: int | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"unknown backend {self.backend!r}", fix=f"Use one of {', '.join(BACKENDS)}.")
        if self.rank_env and len(self.rank_env) != len(self.hostfile.hosts):
            raise InputError("rank_env needs one mapping for each rank, or none at all")
        for key in self.env:
            if not key.replace("_", "").isalnum():
                raise InputError(f"{key!r} is not the name of an environment variable")

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.hostfile.hosts)

    def names(self) -> tuple[str, ...]:
        """The name of each rank's node."""
        return tuple(host.name for host in self.hostfile.hosts)

    def is_local(self) -> bool:
        """Whether every rank runs on this machine."""
        return all(host.ssh == LOCAL for host in self.hostfile.hosts)

    def as_launched(self) -> "JobSpec":
        """This job in a form that mlx.launch takes: of one rank alone it asks what only a group needs."""
        if self.size > 1:
            return self
        [host] = self.hostfile.hosts
        alone = replace(host, ips=host.ips or (LOCAL,), rdma=())
        return replace(self, backend="ring", hostfile=replace(self.hostfile, hosts=(alone,)))

    def environment(self) -> dict[str, str]:
        """What mlx.launch is to give every rank by `--env`: our defaults where nobody chose, and `env`.

        The defaults: offline, no fast synch, and a fair share of math threads.
        """
        shared = max(Counter(host.ssh for host in self.hostfile.hosts).values())
        threads = {}
        if shared > 1:  # MLX's math threads of all ranks at once would fight for the same cores
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // shared))}
        defaults = {**OFFLINE, **NO_FAST_SYNCH, **threads}
        chosen = self._hostfile_environment()
        return {key: value for key, value in defaults.items() if key not in chosen} | dict(self.env)

    def whole_environment(self) -> dict[str, str]:
        """What every rank is given: mlx.launch exports the hostfile's `envs`, then what `--env` says."""
        return self._hostfile_environment() | self.environment()

    def _hostfile_environment(self) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in self.hostfile.envs)
        # mlx.launch passes over any other name
        return {key: value for key, _, value in pairs if key and key.replace("_", "").isalnum()}

    def launch_arguments(self, hostfile: str | Path, *, wired: bool, job: str = "") -> list[str]:
        """mlx.launch's own arguments, from `--backend` to the end of the program's.

        Args:
            hostfile: the file with exactly this job's hosts.
            wired: whether the ranks speak the wire (only when a job of ours listens).
            job: the id that the ranks name their logs by.
        """
        env = self.environment()
        if wired:
            env |= {WIRE_ENV: "1", "JACCL_KERNEL_JOB": job, "JACCL_KERNEL_BACKEND": self.backend}
        arguments = ["--backend", self.backend, "--hostfile", str(hostfile), "--python", self.python]
        if self.starting_port is not None:
            arguments += ["--starting-port", str(self.starting_port)]
        for key, value in env.items():
            arguments += ["--env", f"{key}={value}"]
        return [*arguments, "--", "-m", "jaccl_kernel.ranks", *self.program]

    def plain_command(self, hostfile: str | Path) -> str:
        """The plain `mlx.launch …` that runs the same program, as text for a shell."""
        return shlex.join(["mlx.launch", *self.launch_arguments(hostfile, wired=False)])


def scrubbed_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (this process's by default) without inherited launch variables."""
    source = os.environ if environ is None else environ
    return {key: value for key, value in source.items() if key not in LAUNCH_VARIABLES}


def parse_env(pairs: Sequence[str]) -> dict[str, str]:
    """`["K=V", …]` as a dictionary.

    Raises:
        InputError: a pair without `=`, or without a usable name.
    """
    env = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.replace("_", "").isalnum():
            raise InputError(
                f"--env takes NAME=VALUE, not {pair!r}", fix="For example: --env HF_HOME=/models"
            )
        env[key] = value
    return env
