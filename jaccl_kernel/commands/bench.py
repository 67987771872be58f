"""`jaccl bench`: tokens per second over ranks, with the correctness gate."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaccl_kernel.commands import terminal
from jaccl_kernel.errors import InputError, JobError


def add(commands: Any) -> None:
    """Add `jaccl bench`."""
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
    teller = terminal.Teller(sys.stderr)
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
    terminal.tell_rehearsal(hostfile, teller)
    report = terminal.wait_for(bench(hostfile, wanted, on_event=teller.event))
    if options.json:
        terminal.print_json(report.record)
    else:
        from jaccl_kernel.report import parity, table

        print(table.render(table.BENCH_COLUMNS, table.bench_rows(report.record)))
        print(parity.Parity(**report.record["parity"]).sentence())
        print(f"Record: {report.path or 'not saved'}")
    for one in report.failed:
        cause = one["error"]
        error = JobError(f"{one['ranks']} ranks: {cause['what']}", where=cause["where"], fix=cause["fix"])
        terminal.fail(error, 1)
    return 0 if report.ok else 1


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--ranks takes numbers such as 1,2, not {text!r}") from None
