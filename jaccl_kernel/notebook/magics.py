"""The magics `%%jaccl`, `%jaccl` and `%%prompt`: cells on all ranks, and commands for the ranks.

Rank 0's output is shown as if the cell had run here, that of other ranks as lines with the rank. Output is
shown as it is printed.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import publish_display_data

from jaccl_kernel.core.errors import InputError, JobError
from jaccl_kernel.notebook import resident
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.notebook.work import without_traceback

HELP = "start [HOSTFILE] [--ranks N], load [MODEL], status, close"


class Output:
    """Shows the output of a cell on its ranks as it arrives.

    Args:
        ranks: the ranks that run the cell.
        plain: the rank whose output is shown without a label; None labels all ranks.
    """

    def __init__(self, ranks: Ranks, plain: int | None = 0) -> None:
        self._ranks = ranks
        self._plain = plain
        self._shown: dict[tuple[int, str], str] = {}
        self._lines: dict[tuple[int, str], str] = {}  # unfinished lines of labelled ranks
        self._at_start: dict[str, bool] = {}  # whether a stream is at the start of a line
        self._displays: dict[int, int] = {}
        self._results: set[int] = set()

    def watch(self, pending: Any) -> None:
        """Show new output."""
        metadata = pending.metadata
        for one in metadata if isinstance(metadata, list) else [metadata]:
            if one["engine_id"] is not None:
                self._show(one["engine_id"], one)

    def close(self) -> None:
        """Show the unfinished lines."""
        for (rank, stream), text in self._lines.items():
            if text:
                self._labelled(rank, stream, text)
        self._lines.clear()

    def _show(self, rank: int, metadata: Any) -> None:
        for stream in ("stdout", "stderr"):
            self._text(rank, stream, metadata[stream] or "")
        outputs = metadata["outputs"]
        for content in outputs[self._displays.get(rank, 0) :]:
            self._rich(rank, content)
        self._displays[rank] = len(outputs)
        if metadata["execute_result"] and rank not in self._results:
            self._results.add(rank)
            self._rich(rank, metadata["execute_result"])

    def _text(self, rank: int, stream: str, text: str) -> None:
        before = self._shown.get((rank, stream), "")
        if text == before:
            return
        self._shown[rank, stream] = text
        # a carriage return has replaced the last line
        new = text[len(before) :] if text.startswith(before) else "\r" + text.rpartition("\n")[2]
        if rank == self._plain:
            self._write(stream, new)
            return
        *complete, rest = (self._lines.get((rank, stream), "") + new).split("\n")
        self._lines[rank, stream] = rest
        for line in complete:
            self._labelled(rank, stream, line)

    def _rich(self, rank: int, content: Any) -> None:
        if rank == self._plain:
            publish_display_data(content["data"], content.get("metadata") or {})
        else:
            for line in str(content["data"].get("text/plain", "")).splitlines():
                self._labelled(rank, "stdout", line)

    def _labelled(self, rank: int, stream: str, line: str) -> None:
        newline = "" if self._at_start.get(stream, True) else "\n"  # end another rank's line first
        self._write(stream, f"{newline}[{rank}] {line}\n")

    def _write(self, stream: str, text: str) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.write(text)
        out.flush()
        self._at_start[stream] = text.endswith("\n")


def run_cell(ranks: Ranks, code: str, *, rank: int | None = None, label: bool = False) -> None:
    """Run a cell on all ranks, or on `rank` alone, and show its output as it arrives.

    Raises:
        CellError: the cell raised; the error of the rank that failed first.
    """
    output = Output(ranks, None if label else rank or 0)
    try:
        ranks.calls.execute(code, rank=rank, watch=output.watch)
    finally:
        output.close()


def need_ranks() -> Ranks:
    """The running ranks.

    Raises:
        JobError: no ranks are running.
    """
    ranks = resident.current()
    if ranks is None:
        raise JobError("no ranks are running", fix="Start ranks: %jaccl start, or Ranks.start().")
    return ranks


def start_ranks() -> Ranks:
    """The running ranks, or new ones on the notebooks' hostfile."""
    ranks = resident.current()
    if ranks is None:
        sys.stdout.write("Starting ranks …\n")
        ranks = Ranks.start()
        sys.stdout.write(f"{ranks!r}\n")
    return ranks


@magics_class
class JacclMagics(Magics):
    """The magics; see their docstrings."""

    @cell_magic("jaccl")
    def cell(self, line: str, cell: str) -> None:
        """Run the cell on all ranks: %%jaccl [--rank N] [--all] [--start].

        Rank 0's output is shown as it is, that of other ranks as lines with the rank. The cell can use mx,
        group, rank, size, and stopping(), which is true after ■. --rank N runs the cell on one rank only
        (without collectives), --all labels rank 0's output too, --start starts ranks if none are running.
        """
        with without_traceback():
            options = _parse("%%jaccl", line, [("--rank", int), ("--all", bool), ("--start", bool)])
            run_cell(
                start_ranks() if options.start else need_ranks(), cell, rank=options.rank, label=options.all
            )

    @line_magic("jaccl")
    def line(self, line: str) -> Any:
        """Manage the ranks: %jaccl start [HOSTFILE] [--ranks N] | load [MODEL] | status | close."""
        with without_traceback():
            what, *rest = shlex.split(line) or ["status"]
            if what == "start":
                options = _parse("%jaccl start", shlex.join(rest), [("hostfile", str), ("--ranks", int)])
                return Ranks.start(options.hostfile, count=options.ranks)
            if what == "load":
                took = need_ranks().load(rest[0] if rest else None)
                print(f"loaded in {took:.1f} s" if took else "already loaded")  # noqa: T201
                return None
            if what == "close":
                need_ranks().close()
                return None
            if what == "status":
                print(status(resident.current()))  # noqa: T201
                return None
            raise InputError(f"unknown command: %jaccl {what}", fix=f"Use one of: {HELP}.")

    @cell_magic("prompt")
    def prompt(self, line: str, cell: str) -> None:
        """Ask the loaded model, or the running server: %%prompt [--system S] [--max-tokens N]
        [--temperature T] [--top-p P] [--seed N] [--json]. --json: the answer is a JSON object.
        The variable `answer` is then the Answer.
        """
        from jaccl_kernel.notebook.prompting import prompt

        with without_traceback():
            options = _parse(
                "%%prompt",
                line,
                [("--system", str), ("--max-tokens", int), ("--temperature", float), ("--top-p", float),
                 ("--seed", int), ("--json", bool)],
            )  # fmt: skip
            given = {name: value for name, value in vars(options).items() if value is not None}
            if given.pop("json"):
                given["response_format"] = {"type": "json_object"}
            self.shell.user_ns["answer"] = prompt(cell.strip(), **given)


def status(ranks: Ranks | None) -> str:
    """The state of the ranks, as text."""
    if ranks is None:
        return "no ranks are running (%jaccl start)"
    lines = [repr(ranks)]
    for rank, name in enumerate(ranks.names):
        pid = ranks.pids[rank]
        lines.append(f"rank {rank}  {name}  {ranks.stages.get(rank, '')}" + (f"  pid {pid}" if pid else ""))
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{self.prog}: {message}", fix=self.format_usage().strip())


def _parse(name: str, line: str, options: Sequence[tuple[str, Any]]) -> argparse.Namespace:
    parser = _Parser(prog=name, add_help=False)
    for option, kind in options:
        if kind is bool:
            parser.add_argument(option, action="store_true")
        elif option.startswith("--"):
            parser.add_argument(option, type=kind)
        else:
            parser.add_argument(option, nargs="?")
    return parser.parse_args(shlex.split(line))
