"""`jaccl …`: the steps from a terminal. Parses, calls a step, prints what it returned; knows nothing else.

Exit status: 0 fine; 1 the step found or met a problem; 2 the command line or a file makes no sense; 130 and
143 after Ctrl-C and SIGTERM. Imports are lazy, so that `jaccl --help` is quick.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TextIO, TypeVar

from jaccl_kernel import __version__
from jaccl_kernel.errors import HostfileError, InputError, JacclError
from jaccl_kernel.wire import Event

T = TypeVar("T")


def main(argv: list[str] | None = None) -> None:
    """The console script `jaccl`."""
    options = _parser().parse_args(argv)
    try:
        status = options.run(options)
    except (HostfileError, InputError) as error:
        status = _fail(error, 2)
    except JacclError as error:
        status = _fail(error, 1)
    except BrokenPipeError:  # `jaccl … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaccl",
        description="One machine for large language models out of 1-8 Macs joined by Thunderbolt 5 cables.",
        epilog="No Macs at hand? `jaccl rehearse` makes simulated ones; every command takes their hostfile.",
    )
    parser.add_argument("--version", action="version", version=f"jaccl-kernel {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_hostfile(commands)
    _add_model(commands)
    _add_bench(commands)
    _add_rehearse(commands)
    _add_lab(commands)
    return parser


def _add_hostfile(commands: Any) -> None:
    hostfile = commands.add_parser("hostfile", help="check a hostfile, or write one to edit").add_subparsers(
        required=True, metavar="check|new"
    )
    check = hostfile.add_parser(
        "check", help="what mlx.launch and JACCL will make of it (exit 0 fine, 1 problems, 2 unreadable)"
    )
    check.add_argument("file", type=Path)
    check.add_argument("--backend", choices=("jaccl", "jaccl-ring", "ring"), help="default: the file's own")
    check.add_argument("--json", action="store_true", help="machine-readable")
    check.set_defaults(run=_hostfile_check)
    new = hostfile.add_parser("new", help="write a template for these hosts, to edit")
    new.add_argument("--hosts", required=True, metavar="A,B,…", help="ssh names, rank 0 first")
    new.add_argument("-o", "--output", type=Path, metavar="F", help="default: stdout")
    new.set_defaults(run=_hostfile_new)


def _hostfile_check(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster import check
    from jaccl_kernel.cluster.hostfile import Hostfile

    hostfile = Hostfile.read(options.file)
    problems = check.check(hostfile, backend=options.backend)
    verdict = check.hostfile_verdict(hostfile, options.backend)
    if options.json:
        _print_json(check.to_json(options.file, problems, verdict))
    else:
        print(check.render(problems), end="")
    return 1 if check.has_errors(problems) else 0


def _hostfile_new(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import template

    hostfile = template([name.strip() for name in options.hosts.split(",")])
    if options.output is None:
        print(hostfile.dumps(), end="")
        return 0
    if options.output.exists():
        raise InputError(
            "already exists", where=str(options.output), fix="Name another file, or remove it first."
        )
    hostfile.write(options.output)
    print(f"Wrote {options.output}. Edit it, then: jaccl hostfile check {options.output}")
    return 0


def _add_model(commands: Any) -> None:
    model = commands.add_parser("model", help="what a model is, and over how many ranks it splits")
    model.add_argument("model", help="a folder, a hub id in the local cache, or `demo`")
    model.add_argument("--json", action="store_true", help="machine-readable")
    model.set_defaults(run=_model)


def _model(options: argparse.Namespace) -> int:
    from jaccl_kernel.models.describe import describe, to_json
    from jaccl_kernel.models.inspect import inspect
    from jaccl_kernel.models.resolve import resolve

    if options.model == "demo":
        from jaccl_kernel.models.demo import ensure_demo

        path = _wait_for(ensure_demo(_Teller(sys.stderr).stage))
    else:
        path = resolve(options.model)
    facts = inspect(path)
    if options.json:
        _print_json(to_json(facts))
    else:
        print(describe(facts))
    return 0


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure tokens per second over ranks, with a correctness gate (exit 0: all ran, parity holds)",
    )
    bench.add_argument("hostfile", type=Path)
    bench.add_argument("--model", metavar="DIR|HUB_ID", help="default: the demo model")
    prompt = bench.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="a text, put into the model's chat template")
    prompt.add_argument("--prompt-tokens", type=int, metavar="N", help="a made-up prompt of N tokens")
    bench.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="tokens to generate (default 128)"
    )
    bench.add_argument("--ranks", metavar="1,2", help="numbers of ranks to compare (default: all hosts)")
    bench.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="measured runs per point (default 3)"
    )
    bench.add_argument("--sharding", choices=("tensor", "pipeline"), default="tensor")
    bench.add_argument("--stop-at-eos", action="store_true", help="end at the end-of-text token")
    bench.add_argument(
        "--backend", choices=("jaccl", "jaccl-ring", "ring"), help="default: the hostfile's own"
    )
    bench.add_argument("--env", action="append", default=[], metavar="K=V", help="a variable for every rank")
    bench.add_argument(
        "--fast-synch", action="store_true", help="MLX_METAL_FAST_SYNCH=1: perhaps faster, may wedge the GPU"
    )
    bench.add_argument("--python", metavar="PATH", help="the interpreter on every node (default: this one)")
    bench.add_argument(
        "--port", type=int, metavar="P", help="mlx.launch's --starting-port (default: chosen when local)"
    )
    bench.add_argument("--json", action="store_true", help="stdout holds the record alone")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import Hostfile
    from jaccl_kernel.jobs.spec import FAST_SYNCH, FAST_SYNCH_RISK, parse_env
    from jaccl_kernel.steps.bench import BenchOptions, bench

    hostfile = Hostfile.read(options.hostfile)
    env = parse_env(options.env)
    teller = _Teller(sys.stderr)
    if options.fast_synch:
        env[FAST_SYNCH] = "1"
        teller.note(FAST_SYNCH_RISK)
    wanted = BenchOptions(
        model=options.model,
        prompt=options.prompt,
        prompt_tokens=options.prompt_tokens,
        max_tokens=options.max_tokens,
        ranks=_numbers(options.ranks),
        repeats=options.repeats,
        sharding=options.sharding,
        stop_at_eos=options.stop_at_eos,
        backend=options.backend,
        env=env,
        python=options.python,
        starting_port=options.port,
    )
    _tell_rehearsal(hostfile, teller)
    report = _wait_for(bench(hostfile, wanted, on_event=teller.event))
    if options.json:
        _print_json(report.record)
    else:
        from jaccl_kernel.report import parity, table

        print(table.render(table.BENCH_COLUMNS, table.bench_rows(report.record)))
        print(parity.Parity(**report.record["parity"]).sentence())
        print(f"Record: {report.path}")
    return 0 if report.ok else 1


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--ranks takes numbers such as 1,2, not {text!r}") from None


def _add_rehearse(commands: Any) -> None:
    rehearse = commands.add_parser("rehearse", help="make simulated Macs on this machine")
    rehearse.add_argument("--macs", type=int, metavar="N", help="how many, 1 to 8 (default 4)")
    rehearse.add_argument(
        "--fault", action="append", default=[], metavar="SPEC", help="break something, such as rdma-off:2"
    )
    rehearse.add_argument(
        "--fix", action="append", default=[], metavar="SPEC", help="mend what a --fault broke, in the file F"
    )
    rehearse.add_argument(
        "--keep", action="store_true", help="go on with the Macs of F: add to its faults, keep its matrix"
    )
    rehearse.add_argument("--faults", action="store_true", help="list what can be broken, and end")
    rehearse.add_argument(
        "-o", "--output", type=Path, metavar="F", help="default: hostfiles/rehearsal.local.json"
    )
    rehearse.set_defaults(run=_rehearse)


def _rehearse(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import Hostfile
    from jaccl_kernel.rehearsal import faults, homes, plan

    if options.faults:
        print("".join(f"{fault.usage:<28}{fault.meaning}\n" for fault in faults.FAULTS), end="")
        return 0
    path = options.output or Path("hostfiles") / "rehearsal.local.json"
    keep = options.keep or bool(options.fix)
    if keep and options.macs is not None:
        raise InputError("--macs makes new Macs", fix="Leave out --macs, or --keep and --fix.")
    before = Hostfile.read(path) if keep else homes.make_hostfile(4 if options.macs is None else options.macs)
    hostfile = plan.with_changes(before, add=options.fault, fix=options.fix)
    made = homes.prepare(hostfile, restart=not keep)
    hostfile.write(path)
    at_once = homes.ranks_at_once(len(made))
    print(homes.NOTE)
    for rank, mac in enumerate(made):
        print(f"  rank {rank}: {mac.name}, home {mac.home}")
    meanings = {fault.name: fault.meaning for fault in faults.FAULTS}
    for fault in plan.Plan.of(hostfile).faults:
        print(f"  fault {fault}: {meanings[fault.partition(':')[0]]}")
    print(f"Ranks are real processes over MLX's ring backend. This machine has {os.cpu_count()} cores, so")
    print(f"{at_once} of them run at full speed at once; more run, and share.")
    print(f"Hostfile: {path}\nNext: jaccl bench {path} --ranks 1,{min(2, at_once)}")
    return 0


def _add_lab(commands: Any) -> None:
    lab = commands.add_parser(
        "lab", help="open the workbench in JupyterLab (other arguments go to jupyter lab)", add_help=False
    )
    lab.set_defaults(run=_lab)
    lab.add_argument("arguments", nargs=argparse.REMAINDER)


def _lab(options: argparse.Namespace) -> int:
    from jaccl_kernel.notebook.lab import open_lab

    return open_lab(options.arguments)


class _Teller:
    """Tells progress on a stream, one line a stage of a rank."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[int, str] = {}

    def note(self, text: str) -> None:
        """A line for the person."""
        with contextlib.suppress(BrokenPipeError):
            print(text, file=self._stream, flush=True)

    def stage(self, text: str, fraction: float | None = None) -> None:
        """A stage of the host's own work."""
        self.event(Event(-1, "stage", {"name": "prepare", "text": text, "fraction": fraction}))

    def event(self, event: Event) -> None:
        """Whatever a step tells."""
        who = f"rank {event.rank}" if event.rank >= 0 else "jaccl"
        if event.kind == "stage":
            key = f"{event.data['name']} {event.data['text'] if event.rank < 0 else ''}"
            if self._last.get(event.rank) != key:
                self._last[event.rank] = key
                self.note(f"[{who}] {event.data['name']}: {event.data['text']}")
        elif event.kind == "line":
            self.note(f"[{who}] {event.data['text']}")
        elif event.kind == "job":
            self.note(
                f"[{who}] logs: {event.data['folder']}\n[{who}] the same by hand: {event.data['command']}"
            )


def _tell_rehearsal(hostfile: Any, teller: _Teller) -> None:
    from jaccl_kernel.rehearsal import homes

    if homes.is_rehearsal(hostfile):
        teller.note(homes.NOTE)


def _wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a step; the first SIGINT or SIGTERM cancels it and waits for its end, the second leaves at once.

    The handlers are set even if the process was started with SIGINT ignored. Leaving at once is safe: a
    job's launcher ends its ranks when our end of its stdin is gone.
    """

    async def guarded() -> T:
        task = asyncio.ensure_future(work)
        got: list[int] = []

        def on_signal(signum: int) -> None:
            if got:
                os._exit(128 + signum)
            got.append(signum)
            print("Stopping …", file=sys.stderr, flush=True)
            task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, on_signal, signum)
        try:
            return await task
        except asyncio.CancelledError:
            if got:
                print("Stopped: nothing was left running.", file=sys.stderr, flush=True)
                sys.exit(128 + got[0])
            raise

    return asyncio.run(guarded())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _fail(error: JacclError, status: int) -> int:
    from jaccl_kernel.errors import RankDied

    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, RankDied) and error.last_words:
        print("  Its last words:", file=sys.stderr)
        for line in error.last_words:
            print(f"    {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
