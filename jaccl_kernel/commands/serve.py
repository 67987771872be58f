"""`jaccl serve | stop | status | logs`: the server over all ranks, in the foreground or detached."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from jaccl_kernel.commands import terminal
from jaccl_kernel.errors import InputError
from jaccl_kernel.wire import Event

LOOK_S = 0.3


def add(commands: Any) -> None:
    """Add the four commands."""
    _add_serve(commands)
    stop = commands.add_parser("stop", help="end a server, whatever state it is in")
    stop.add_argument("id", nargs="?", help="its id or URL (default: the only one that runs)")
    stop.add_argument("--all", action="store_true", help="end every server of this machine and user")
    stop.set_defaults(run=_stop)
    status = commands.add_parser(
        "status", help="the servers that run, and how they are (exit 0: all are ready)"
    )
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    logs = commands.add_parser("logs", help="what a server has said, and its ranks")
    logs.add_argument("id", nargs="?", help="its id (default: the newest, running or not)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    logs.add_argument("--rank", type=int, metavar="N", help="the lines of this rank alone")
    logs.set_defaults(run=_logs)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model over all ranks as an OpenAI-compatible API, until Ctrl-C (or --detach)",
        description="Serve a model over all ranks. In the API the default temperature is 1.0, as OpenAI's.",
    )
    serve.add_argument("hostfile", type=Path, nargs="?")
    serve.add_argument("--model", metavar="DIR|HUB_ID", help="default: the demo model")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address of rank 0 to serve on (default 127.0.0.1)"
    )
    serve.add_argument("--port", type=int, default=8080, metavar="P", help="port to serve on (default 8080)")
    serve.add_argument(
        "--ctrl-port", type=int, default=18080, metavar="P", help="rank 0's control port (default 18080)"
    )
    serve.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="holds the key; made and shown if --host needs one"
    )
    serve.add_argument(
        "--api-key", metavar="KEY", help="the key itself (others on this machine can see command lines)"
    )
    serve.add_argument(
        "--alias", metavar="NAME", help="the model's id in the API (default: its folder's name)"
    )
    serve.add_argument("--sharding", choices=("tensor", "pipeline"), default="tensor")
    serve.add_argument(
        "--backend", choices=("jaccl", "jaccl-ring", "ring"), help="default: the hostfile's own"
    )
    serve.add_argument("--detach", action="store_true", help="leave it running; returns when it serves")
    serve.add_argument("--restart", action="store_true", help="start again what has failed")
    serve.add_argument("--max-batch", type=int, metavar="N", help="sequences at once (default 32)")
    serve.add_argument("--max-queue", type=int, metavar="N", help="requests that may wait (default 128)")
    serve.add_argument(
        "--context", type=int, metavar="N", help="tokens a sequence may have (default: the model's)"
    )
    serve.add_argument("--cache-gb", type=float, metavar="G", help="prompt caches, per rank")
    serve.add_argument(
        "--memory-gb", type=float, metavar="G", help="memory, per rank (default: what there is)"
    )
    serve.add_argument("--prefill-step", type=int, metavar="N", help="prompt tokens a step (default 512)")
    serve.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="may call from a page"
    )
    serve.add_argument("--stall", type=float, default=300.0, metavar="S", help="a longer step is a stuck one")
    serve.add_argument("--env", action="append", default=[], metavar="K=V", help="a variable for every rank")
    serve.add_argument(
        "--fast-synch", action="store_true", help="MLX_METAL_FAST_SYNCH=1: perhaps faster, may wedge the GPU"
    )
    serve.add_argument("--python", metavar="PATH", help="the interpreter on every node (default: this one)")
    serve.add_argument("--starting-port", type=int, metavar="P", help="mlx.launch's")
    serve.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import Hostfile
    from jaccl_kernel.jobs import servers
    from jaccl_kernel.steps.serve import serve
    from jaccl_kernel.steps.serve_detached import read_asked

    teller = _Teller(sys.stderr)
    if options.folder:  # the child of --detach
        path, wanted = read_asked(options.folder)
        terminal.wait_for(serve(Hostfile.read(path), wanted, folder=servers.Folder(options.folder)))
        return 0
    if options.hostfile is None:
        raise InputError("serve needs a hostfile", fix="jaccl serve HOSTFILE; `jaccl rehearse` makes one.")
    hostfile = Hostfile.read(options.hostfile)
    wanted = _options(options, teller)
    terminal.tell_rehearsal(hostfile, teller)
    if options.detach:
        return terminal.wait_for(_detach(options.hostfile, wanted, teller))
    if wanted.api_key and not (options.api_key or options.api_key_file):
        teller.note(f"API key (shown once): {wanted.api_key}")
    terminal.wait_for(serve(hostfile, wanted, on_event=teller.event))
    return 0


def _options(options: argparse.Namespace, teller: terminal.Teller) -> Any:
    from jaccl_kernel.jobs.spec import FAST_SYNCH, FAST_SYNCH_RISK, parse_env
    from jaccl_kernel.steps.serve import ServeOptions, check_options

    env = parse_env(options.env)
    if options.fast_synch:
        env[FAST_SYNCH] = "1"
        teller.note(FAST_SYNCH_RISK)
    key = options.api_key
    if options.api_key_file:
        try:
            key = options.api_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputError(
                f"cannot read the API key: {error.strerror}", where=str(options.api_key_file)
            ) from None
    limits = ("max_batch", "max_queue", "context", "cache_gb", "memory_gb", "prefill_step")
    where = ("model", "host", "port", "ctrl_port", "alias", "sharding", "backend", "python", "starting_port")
    return check_options(
        ServeOptions(
            **{name: getattr(options, name) for name in (*where, *limits, "restart")},
            api_key=key,
            env=env,
            cors_origins=tuple(options.cors_origin),
            stall_s=options.stall,
        )
    )


async def _detach(hostfile: Path, wanted: Any, teller: terminal.Teller) -> int:
    from jaccl_kernel.steps.serve_detached import start_detached

    running = await start_detached(hostfile, wanted, teller.event)
    ended: list[Event] = []

    def over(event: Event) -> bool:
        if event.kind == "serving" or (event.kind == "failed" and not wanted.restart):
            ended.append(event)
        return bool(ended)

    try:
        await running.follow(teller.event, over)
    except BaseException:
        teller.note(await running.stop())
        raise
    if not ended or ended[0].kind != "serving":
        teller.note(f"error: it did not start; see `jaccl logs {running.id}`")
        return 1
    print(running.url)
    if wanted.api_key:
        teller.note(f"API key (shown once): {wanted.api_key}")
    teller.note(f"It goes on without this terminal. Stop it with: jaccl stop {running.id}")
    return 0


class _Teller(terminal.Teller):
    """Also what only servers tell."""

    def event(self, event: Event) -> None:
        data = event.data
        if event.kind == "serving":
            self.note(
                f"[rank 0] serving {data['model']} at {data['url']}/v1 (context {data['context']} tokens)"
            )
            if data.get("only_there"):
                self.note(f"[jaccl] {data['only_there']}")
        elif event.kind == "failed":
            where = f"{data['where']}: " if data["where"] else ""
            self.note(f"[jaccl] failed: {where}{data['what']}\n  Fix: {data['fix'] or 'see the logs'}")
        elif event.kind == "restart":
            self.note(f"[jaccl] starting again in {data['in_s']:.0f} s (failure {data['number']})")
        elif event.kind in ("sick", "well"):
            text = data.get("why", "is back")
            self.note(f"[rank 0] rank {data['rank_of']}: {text}")
        else:
            super().event(event)


def _find(name: str | None) -> Any:
    from jaccl_kernel.steps.serve_detached import find_running

    running = find_running()
    chosen = [one for one in running if name in (None, one.id, one.url, f"{one.url}/v1")]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(one.id for one in running) or "none"
    what = (
        "no server runs"
        if not running
        else f"which one? {names} run"
        if not name
        else f"no server {name!r} runs"
    )
    raise InputError(what, fix=f"Running: {names}.")


def _stop(options: argparse.Namespace) -> int:
    from jaccl_kernel.steps.serve_detached import find_running

    chosen = find_running() if options.all else [_find(options.id)]
    for one in chosen:
        print(f"{one.id}: {terminal.wait_for(one.stop())}")
    if not chosen:
        print("no server runs")
    return 0


def _status(options: argparse.Namespace) -> int:
    import asyncio

    from jaccl_kernel.steps.serve_detached import find_running

    running = find_running()

    async def ask() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(one.status() for one in running)))

    told = terminal.wait_for(ask())
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
            **status,
        }
        for one, status in zip(running, told, strict=True)
    ]
    if options.json:
        terminal.print_json(rows)
    else:
        for row in rows:
            _print_status(row)
        if not rows:
            print("no server runs")
    return 0 if all(row["state"] == "ready" for row in rows) else 1


def _print_status(row: dict[str, Any]) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"]))
    print(f"{row['id']}  {row['state']}: {row['stage']}")
    print(f"  {row['url']}/v1  {Path(row['model']).name}{'  REHEARSAL' if row['rehearsal'] else ''}")
    print(f"  process {row['pid']} since {since}, on {', '.join(row['hosts'])}")
    if "tokens" in row:
        print(
            f"  {row['running']} running, {row['queued']} waiting, {row['tokens_per_s']} tokens/s, "
            f"{row['tokens']} tokens so far"
        )
    for rank in row.get("ranks", []):
        state = "" if rank["alive"] else "  NOT WITH US"
        print(
            f"  rank {rank['rank']} {rank['name']}: step {rank['step_ms']:.1f} ms, "
            f"{rank['memory_bytes'] / 1e9:.2f} GB{state}"
        )


def _logs(options: argparse.Namespace) -> int:
    from jaccl_kernel.jobs import servers

    known = [one for one in servers.folders(alive=False) if one.read()]
    chosen = [one for one in known if options.id in (None, one.id)]
    if not chosen:
        raise InputError(f"no server {options.id!r} is known" if options.id else "there was no server yet")
    folder = chosen[-1]
    teller = _Teller(sys.stdout)
    offset = 0
    while True:
        alive = folder.alive()
        events, offset = folder.read_events(offset)
        for event in events:
            if options.rank in (None, event.rank):
                teller.event(event)
        if not options.follow or (not alive and not events):
            return 0
        time.sleep(LOOK_S)
