"""`jaccl serve`, `stop`, `status` and `logs`: the server over all ranks, in the foreground or detached."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import Json, command, exclusive, group
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import (
    Event,
    Failed,
    Restarting,
    ServerStopped,
    Serving,
    WorkerDown,
    WorkerRecovered,
)  # fmt: skip
from jaccl_kernel.core.options import FAST_SYNCH_RISK, NETWORK, ServeOptions

if TYPE_CHECKING:
    from jaccl_kernel.steps.serve.detached import Running

POLL_S = 0.3


@command
def serve(
    hostfile: Annotated[Path | None, Parameter(help="Hostfile")] = None,
    *,
    options: ServeOptions,
    api_key_file: Annotated[
        Path | None, Parameter(help="File with the API key", metavar="FILE", group=group(NETWORK))
    ] = None,
    detach: Annotated[bool, Parameter(help="Return when the server is ready, and leave it running")] = False,
    folder: Annotated[Path | None, Parameter(show=False)] = None,
) -> int:
    """Serve; --folder is for the process that --detach starts."""
    from jaccl_kernel.hostfile.hostfile import Hostfile
    from jaccl_kernel.launch import servers
    from jaccl_kernel.steps.serve.detached import read_asked
    from jaccl_kernel.steps.serve.serve import serve as start

    reporter = ServerReporter(sys.stderr)
    if folder:
        path, options = read_asked(folder)
        reporter.run(start(Hostfile.read(path), options, folder=servers.ServerFolder(folder)))
        return 0
    if hostfile is None:
        raise InputError("a hostfile is required", fix="`jaccl rehearse` writes one for simulated Macs.")
    exclusive(api_key=options.api_key, api_key_file=api_key_file)
    if api_key_file:
        options = options.replace(api_key=_read_key(api_key_file))
    given = options.api_key
    options = options.with_api_key()
    if options.fast_synch:
        reporter.note(FAST_SYNCH_RISK)
    cluster = Hostfile.read(hostfile)
    terminal.note_rehearsal(cluster, reporter)
    if detach:
        return reporter.run(_detach(hostfile, options, reporter))
    if options.api_key and not given:
        reporter.note(f"API key (shown once): {options.api_key}")
    reporter.run(start(cluster, options, on_event=reporter.event))
    return 0


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"cannot read the API key: {error.strerror}", where=str(path)) from None


async def _detach(hostfile: Path, options: ServeOptions, reporter: terminal.Reporter) -> int:
    from jaccl_kernel.steps.serve.detached import start_detached

    running = await start_detached(hostfile, options, reporter.event)
    ended: list[Event] = []

    def has_started(event: Event) -> bool:
        if isinstance(event.body, Serving) or (isinstance(event.body, Failed) and not options.restart):
            ended.append(event)
        return bool(ended)

    try:
        await running.follow(reporter.event, has_started)
    except BaseException:
        reporter.note(await running.stop())
        raise
    if not ended or not isinstance(ended[0].body, Serving):
        reporter.note(f"error: the server did not start\n  Fix: See `jaccl logs {running.id}`.")
        return 1
    print(running.url)
    if options.api_key:
        reporter.note(f"API key (shown once): {options.api_key}")
    reporter.note(f"The server runs without this terminal. Stop it with: jaccl stop {running.id}")
    return 0


class ServerReporter(terminal.Reporter):
    """Reports the events of a server too."""

    def event(self, event: Event) -> None:
        """Report one event."""
        match event.body:
            case Serving(url, model, context, _, only_there):
                self.note(f"[rank 0] serving {model} at {url}/v1 (context {context} tokens)")
                if only_there:
                    self.note(f"[jaccl] {only_there}")
            case Failed(_, what, where, fix, _, lines):
                prefix = f"{where}: " if where else ""
                text = f"[jaccl] failed: {prefix}{what}\n  Fix: {fix or 'See the logs.'}"
                self.note("\n".join([text, *terminal.last_lines(lines)]))
            case Restarting(in_s, number):
                self.note(f"[jaccl] restarting in {in_s:.0f} s (failure {number})")
            case WorkerDown(rank, why):
                self.note(f"[rank 0] rank {rank}: down: {why}")
            case WorkerRecovered(rank):
                self.note(f"[rank 0] rank {rank}: running")
            case ServerStopped():
                self.note("[jaccl] stopped")
            case _:
                super().event(event)


@command
def stop(
    id: Annotated[  # noqa: A002  the word that `jaccl status` prints
        str | None, Parameter(help="Server id or URL", show_default="the only running server")
    ] = None,
    *,
    all: Annotated[bool, Parameter(help="Stop every server of this machine and user")] = False,  # noqa: A002
) -> int:
    """Stop servers."""
    from jaccl_kernel.steps.serve.detached import find_running

    chosen = find_running() if all else [_find(id)]
    reporter = terminal.Reporter(sys.stderr)
    for one in chosen:
        print(f"{one.id}: {reporter.run(one.stop())}")
    if not chosen:
        print("no server is running")
    return 0


def _find(name: str | None) -> "Running":
    from jaccl_kernel.steps.serve.detached import find_running

    running = find_running()
    chosen = [one for one in running if name in (None, one.id, one.url, f"{one.url}/v1")]
    if len(chosen) == 1:
        return chosen[0]
    if not running:
        raise InputError(
            "no server is running",
            fix="Start one with `jaccl serve HOSTFILE`; `jaccl logs` shows the log of the last one.",
        )
    names = ", ".join(one.id for one in running)
    what = f"no server {name!r} is running" if name else f"{len(running)} servers are running"
    raise InputError(what, fix=f"Give one of {names}, or stop all with `jaccl stop --all`.")


@command
def status(*, json: Json = False) -> int:
    """Show the running servers."""
    import asyncio

    from jaccl_kernel.steps.serve.detached import find_running

    running = find_running()

    async def ask() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(one.status() for one in running)))

    answers = terminal.Reporter(sys.stderr).run(ask())
    rows = [
        {
            "id": one.id,
            "url": one.url,
            "model": one.state.model,
            "hosts": list(one.state.hosts),
            "hostfile": one.state.hostfile,
            "pid": one.state.pid,
            "since": one.state.since,
            "rehearsal": one.state.rehearsal,
            **answer,
        }
        for one, answer in zip(running, answers, strict=True)
    ]
    if json:
        terminal.print_json(rows)
    else:
        for row in rows:
            _print_status(row)
        if not rows:
            print("no server is running")
    return 0 if all(row["state"] == "ready" for row in rows) else 1


def _print_status(row: dict[str, Any]) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"]))
    print(f"{row['id']}  {row['state']}: {row['stage']}")
    print(f"  {row['url']}/v1  {Path(row['model']).name}{'  REHEARSAL' if row['rehearsal'] else ''}")
    print(f"  process {row['pid']} since {since}, on {', '.join(row['hosts'])}")
    if "tokens" in row:
        print(
            f"  {row['running']} running, {row['queued']} waiting, {row['tokens_per_s']} tokens/s, "
            f"{row['tokens']} tokens in total"
        )
    for rank in row.get("ranks", []):
        state = "" if rank["alive"] else "  down"
        print(
            f"  rank {rank['rank']} {rank['name']}: step {rank['step_ms']:.1f} ms, "
            f"{rank['memory_bytes'] / 1e9:.2f} GB{state}"
        )


@command
def logs(
    id: Annotated[  # noqa: A002  the word that `jaccl status` prints
        str | None, Parameter(help="Server id", show_default="the newest server, running or not")
    ] = None,
    *,
    follow: Annotated[
        bool, Parameter(name=("--follow", "-f"), help="Continue until the server ends")
    ] = False,
    rank: Annotated[int | None, Parameter(help="Show the lines of this rank only", metavar="N")] = None,
) -> int:
    """Show a server's log."""
    from jaccl_kernel.launch import servers

    known = [one for one in servers.folders(alive=False) if one.read()]
    chosen = [one for one in known if id in (None, one.id)]
    if not chosen:
        raise InputError(f"no server {id!r} is known" if id else "there is no server log yet")
    folder = chosen[-1]
    reporter = ServerReporter(sys.stdout, live=False)
    offset, stopped = 0, False
    while True:
        alive = folder.alive()
        events, offset = folder.read_events(offset)
        for event in events:
            if event.rank < 0:
                stopped = isinstance(event.body, ServerStopped | Failed)
            if rank in (None, event.rank):
                reporter.event(event)
        if not follow or (not alive and not events):
            if not alive and not stopped:
                reporter.note("[jaccl] down: the process was killed, or this machine restarted")
            return 0
        if reporter.wait_closed(POLL_S):  # `jaccl logs -f | head -1`
            return 0
