"""The specification of a job, and the one place that builds its mlx.launch command line and environment.

Starts no process. The same arguments produce our job and the equivalent plain `mlx.launch …` command.
"""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import WIRE_ENV
from jaccl_kernel.core.options import BACKENDS, FAST_SYNCH
from jaccl_kernel.hostfile import lint
from jaccl_kernel.hostfile.hostfile import LOCAL, Hostfile

# Ranks must not contact a model hub: ranks with and without access would load different files.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

NO_FAST_SYNCH = {FAST_SYNCH: "0"}  # MLX treats 0 as unset; this overrides an inherited value

# Inherited launch variables could connect a job to another one or override its own (JACCL_* overrides MLX_*).
LAUNCH_VARIABLES = (
    *lint.LAUNCH_VARIABLES,
    "MLX_RING_VERBOSE",
    "MLX_WORLD_SIZE",
    "NCCL_HOST_IP",
    "NCCL_PORT",
)


@dataclass(frozen=True)
class JobSpec:
    """A program to run on every host of a hostfile.

    Args:
        hostfile: the ranks of this job, in order (see `Hostfile.subset`).
        program: the arguments after `-m jaccl_kernel.ranks`; the program's name first.
        backend: mlx.launch's `--backend`.
        python: the interpreter on every node.
        env: variables for every rank; they override the hostfile's `envs`, which override our
        rank_env: variables for each rank that runs on this machine, one mapping a rank (a simulated Mac's
            home, say); empty for none.
        plain_env: further variables of the plain command only, for what the host sends to the ranks itself.
        starting_port: mlx.launch's `--starting-port`: the coordinator's (jaccl), or rank 0's first (ring).
    """

    hostfile: Hostfile
    program: tuple[str, ...]
    backend: str
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    rank_env: tuple[Mapping[str, str], ...] = ()
    plain_env: Mapping[str, str] = field(default_factory=dict)
    starting_port: int | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"unknown backend {self.backend!r}", fix=f"Use one of {', '.join(BACKENDS)}.")
        if self.rank_env and len(self.rank_env) != len(self.hostfile.hosts):
            raise InputError("rank_env must be empty or have one mapping per rank")
        for key in self.env:
            if not key.replace("_", "").isalnum():
                raise InputError(f"{key!r} is not the name of an environment variable")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.hostfile.hosts)

    def names(self) -> tuple[str, ...]:
        """The name of each rank's node."""
        return tuple(host.name for host in self.hostfile.hosts)

    def is_local(self) -> bool:
        """Whether every rank runs on this machine."""
        return all(host.ssh == LOCAL for host in self.hostfile.hosts)

    def as_launched(self) -> "JobSpec":
        """This job in a form that mlx.launch accepts, which has extra requirements for a single rank."""
        if self.size > 1:
            return self
        [host] = self.hostfile.hosts
        alone = replace(host, ips=host.ips or (LOCAL,), rdma=())
        return replace(self, backend="ring", hostfile=replace(self.hostfile, hosts=(alone,)))

    def environment(self) -> dict[str, str]:
        """The variables that mlx.launch passes to every rank with `--env`: our defaults, and `env`.

        The defaults are offline mode, no fast synch and an equal share of math threads. The hostfile's
        `envs` override them.
        """
        shared = max(Counter(host.ssh for host in self.hostfile.hosts).values())
        threads = {}
        if shared > 1:  # otherwise the math threads of all ranks compete for the same cores
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // shared))}
        defaults = {**OFFLINE, **NO_FAST_SYNCH, **threads}
        chosen = self._hostfile_environment()
        return {key: value for key, value in defaults.items() if key not in chosen} | dict(self.env)

    def full_environment(self) -> dict[str, str]:
        """All variables of every rank: mlx.launch exports the hostfile's `envs`, then the `--env` values."""
        return self._hostfile_environment() | self.environment()

    def _hostfile_environment(self) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in self.hostfile.envs)
        # mlx.launch ignores any other name
        return {key: value for key, _, value in pairs if key and key.replace("_", "").isalnum()}

    def launch_arguments(self, hostfile: str | Path, *, wired: bool, job: str = "") -> list[str]:
        """mlx.launch's arguments, including those of the program.

        Args:
            hostfile: the file with exactly this job's hosts.
            wired: whether the ranks send events (only when a `Job` reads them).
            job: the job id, which the ranks use in the names of their logs.
        """
        env = self.environment()
        env |= {} if wired else self.plain_env
        if wired:
            env |= {WIRE_ENV: "1", "JACCL_KERNEL_JOB": job, "JACCL_KERNEL_BACKEND": self.backend}
        arguments = ["--backend", self.backend, "--hostfile", str(hostfile), "--python", self.python]
        if self.starting_port is not None:
            arguments += ["--starting-port", str(self.starting_port)]
        for key, value in env.items():
            arguments += ["--env", f"{key}={value}"]
        return [*arguments, "--", "-m", "jaccl_kernel.ranks", *self.program]

    def plain_command(self, hostfile: str | Path) -> str:
        """The plain `mlx.launch …` shell command that runs the same program."""
        return shlex.join(["mlx.launch", *self.launch_arguments(hostfile, wired=False)])


def scrubbed_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (this process's by default) without inherited launch variables."""
    source = os.environ if environ is None else environ
    return {key: value for key, value in source.items() if key not in LAUNCH_VARIABLES}
