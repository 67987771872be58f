"""What is checked before a job with a model starts: the hostfile, and that the model is there and splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.cluster.check import check
from jaccl_kernel.cluster.hostfile import LOCAL, Hostfile
from jaccl_kernel.errors import HostfileError, ModelError
from jaccl_kernel.jobs.run import OnEvent
from jaccl_kernel.models.demo import SMOLLM2, ensure_demo
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.resolve import DEMO, resolve
from jaccl_kernel.steps.locate import MODELS
from jaccl_kernel.wire import HOST, Event


def check_hostfile(hostfile: Hostfile, backend: str) -> None:
    """Refuse what JACCL or mlx.launch would refuse, before a rank starts.

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
    """The model's name for the ranks, and what a record says of it.

    The demo model is made here where all ranks are here; else it is where `jaccl sync FILE demo` puts it.

    Args:
        hostfile: where it will run.
        name: a folder, or a hub id in the local cache; None or "demo" for the demo model.
        sharding: "tensor" or "pipeline".
        counts: the numbers of ranks that it must split over.
        on_event: hears of the demo model being made.

    Raises:
        ModelError: it is damaged, or does not split over so many ranks.
    """

    def progress(stage: str, fraction: float | None) -> None:
        on_event(Event(HOST, "stage", {"name": "demo model", "text": stage, "fraction": fraction}))

    local = all(host.ssh == LOCAL for host in hostfile.hosts)
    name = name or DEMO
    if local:
        path = await ensure_demo(progress) if name == DEMO else resolve(name)
        return str(path), _inspect(path, sharding, counts)
    # the ranks look for it on their own nodes; what this machine has need not be there
    told = f"{MODELS}/{SMOLLM2.name}" if name == DEMO else name
    try:
        path = resolve(name)
    except ModelError:
        return told, {"digest": None}
    return told, _inspect(path, sharding, counts)


def _inspect(path: Path, sharding: str, counts: Sequence[int]) -> dict[str, Any]:
    facts = inspect(path)
    for count in counts:
        split = facts.pipeline(count) if sharding == "pipeline" else facts.tensor_parallel(count)
        if count > 1 and not split.ok:
            raise ModelError(
                f"does not split over {count} ranks: {'; '.join(split.reasons)}",
                where=path.name,
                fix="See `jaccl model` for the numbers of ranks that it splits over.",
            )
    return {
        "digest": facts.digest,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
    }
