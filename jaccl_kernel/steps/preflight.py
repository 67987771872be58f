"""Checks before a job with a model starts: the hostfile is valid, and the model is present and splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import HostfileError, ModelError
from jaccl_kernel.core.events import HOST, Event, Stage
from jaccl_kernel.hostfile.hostfile import LOCAL, Hostfile
from jaccl_kernel.hostfile.lint import check
from jaccl_kernel.launch.run import OnEvent
from jaccl_kernel.models.demo import ensure_demo
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.resolve import DEMO, resolve
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync.locate import on_nodes


def check_hostfile(hostfile: Hostfile, backend: str) -> None:
    """Reject a hostfile that JACCL or mlx.launch would reject, before a rank starts.

    Raises:
        HostfileError: the first error of `jaccl hostfile check`.
    """
    if len(hostfile.hosts) == 1:
        return
    for problem in check(hostfile, backend=backend):
        if problem.severity == "error":
            raise HostfileError(problem.message, where=problem.where, fix=problem.fix)


async def find_model(
    hostfile: Hostfile, name: str | None, sharding: str, counts: Sequence[int], on_event: OnEvent
) -> tuple[str, dict[str, Any]]:
    """Return the model's name for the ranks, and its facts for the record.

    If all ranks run on this machine, creates the demo model on demand. Otherwise `jaccl sync FILE demo`
    copies it to the nodes.

    Args:
        hostfile: the hosts of the job.
        name: a folder, a NAME in `~/models` (as `jaccl sync` creates), or a hub id in the local cache; None
            or "demo" for the demo model.
        sharding: "tensor" or "pipeline".
        counts: the numbers of ranks to split over.
        on_event: receives the progress of creating the demo model.

    Raises:
        ModelError: the model is damaged, is missing on a simulated Mac, or does not split over that many
            ranks.
        UnknownModel: all ranks run on this machine, and it does not have the model.
    """

    def progress(stage: str, fraction: float | None) -> None:
        on_event(Event(HOST, Stage("demo model", stage, fraction)))

    name = name or DEMO
    if name == DEMO and _is_local(hostfile):
        await ensure_demo(progress)
    place, path = find_place(hostfile, name, max(counts))
    return place, {"digest": None} if path is None else _inspect(path, sharding, counts)


def find_place(hostfile: Hostfile, name: str, size: int | None = None) -> tuple[str, Path | None]:
    """Return the model's name for the ranks, and rank 0's folder if it is on this machine.

    Each simulated Mac has its own home folder: a model below the home folder must be in each of them.

    Args:
        hostfile: the hosts of the job.
        name: see `find_model`; the demo model must exist.
        size: the number of hosts to use; None for all.

    Returns:
        The folder is None if only other machines have the model.

    Raises:
        ModelError: a simulated Mac does not have the model.
        UnknownModel: all ranks run on this machine, and it does not have the model.
    """
    place = on_nodes(name)
    if not _is_local(hostfile):
        try:
            return place, resolve(name)
        except ModelError:
            return place, None  # each rank resolves the name on its own node
    homes = Cluster.of(hostfile).rank_env[:size] if place.startswith("~/") and name != DEMO else ()
    if not homes:
        path = resolve(name)
        return str(path), path
    folders = [Path(home["HOME"], place.removeprefix("~/")) for home in homes]
    lacking = [
        host.name for host, folder in zip(hostfile.hosts, folders, strict=False) if not folder.is_dir()
    ]
    if len(lacking) == len(folders):
        resolve(name)  # raises if the model is not on this machine either
    if lacking:
        fix = f"`jaccl sync FILE {place}` copies it to every node."
        raise ModelError(f"not found on {', '.join(lacking)}", where=place, fix=fix)
    return place, folders[0]


def _is_local(hostfile: Hostfile) -> bool:
    return all(host.ssh == LOCAL for host in hostfile.hosts)


def _inspect(path: Path, sharding: str, counts: Sequence[int]) -> dict[str, Any]:
    facts = inspect(path)
    if facts.problem:
        raise ModelError(facts.problem, where=path.name, fix=facts.fix)
    for count in counts:
        split = facts.pipeline(count) if sharding == "pipeline" else facts.tensor_parallel(count)
        if count > 1 and not split.ok and not split.unknown:
            raise ModelError(
                f"cannot split over {count} ranks: {'; '.join(split.reasons)}",
                where=path.name,
                fix="Run `jaccl model` to list the supported numbers of ranks.",
            )
    return {
        "digest": facts.digest,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
    }
