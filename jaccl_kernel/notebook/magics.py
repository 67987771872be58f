"""`%%jaccl`, `%jaccl` and `%%prompt`: cells on all ranks, and what one types about them.

Of rank 0 everything shows as if it had run here; of the others, lines with their rank. Text comes as it is
printed, each piece once.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import publish_display_data

from jaccl_kernel.errors import InputError, JobError
from jaccl_kernel.notebook import resident
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.notebook.work import briefly

HELP = "start [HOSTFILE] [--ranks N], load [MODEL], status, close"


class Output:
    """Shows what a cell prints and displays on its ranks, piece by piece.

    Args:
        ranks: where it runs.
        plain: the rank whose output is shown as it is; None labels every rank's.
    """

    def __init__(self, ranks: Ranks, plain: int | None = 0) -> None:
        self._ranks = ranks
        self._plain = plain
        self._shown: dict[tuple[int, str], str] = {}
        self._lines: dict[tuple[int, str], str] = {}  # begun by a labelled rank, and not ended
        self._at_start: dict[str, bool] = {}  # whether the next character of a stream begins a line
        self._displays: dict[int, int] = {}
        self._results: set[int] = set()

    def watch(self, pending: Any) -> None:
        """Show what is new."""
        metadata = pending.metadata
        for one in metadata if isinstance(metadata, list) else [metadata]:
            if one["engine_id"] is not None:
                self._show(one["engine_id"], one)

    def close(self) -> None:
        """Show lines that never ended."""
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
        # a carriage return has rewritten the last line: so do we
        new = text[len(before) :] if text.startswith(before) else "\r" + text.rpartition("\n")[2]
        if rank == self._plain:
            self._write(stream, new)
            return
        *whole, rest = (self._lines.get((rank, stream), "") + new).split("\n")
        self._lines[rank, stream] = rest
        for line in whole:
            self._labelled(rank, stream, line)

    def _rich(self, rank: int, content: Any) -> None:
        if rank == self._plain:
            publish_display_data(content["data"], content.get("metadata") or {})
        else:
            for line in str(content["data"].get("text/plain", "")).splitlines():
                self._labelled(rank, "stdout", line)

    def _labelled(self, rank: int, stream: str, line: str) -> None:
        break_it = "" if self._at_start.get(stream, True) else "\n"  # never into another rank's line
        self._write(stream, f"{break_it}[{rank}] {line}\n")

    def _write(self, stream: str, text: str) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.write(text)
        out.flush()
        self._at_start[stream] = text.endswith("\n")


def run_cell(ranks: Ranks, code: str, *, rank: int | None = None, label: bool = False) -> None:
    """Run a cell on all ranks (or on `rank` alone), showing its output as it comes.

    Raises:
        CellError: it raised; from the rank that was first.
    """
    output = Output(ranks, None if label else rank or 0)
    try:
        ranks.execute(code, rank=rank, watch=output.watch)
    finally:
        output.close()


def need_ranks() -> Ranks:
    """The ranks that live.

    Raises:
        JobError: there are none.
    """
    ranks = resident.current()
    if ranks is None:
        raise JobError("no ranks are running", fix="Start some: %jaccl start, or Ranks.start().")
    return ranks


def start_ranks() -> Ranks:
    """The ranks that live, or new ones on the notebooks' hostfile."""
    ranks = resident.current()
    if ranks is None:
        sys.stdout.write("Starting ranks …\n")
        ranks = Ranks.start()
        sys.stdout.write(f"{ranks!r}\n")
    return ranks


@magics_class
class JacclMagics(Magics):
    """The magics; see each one's docstring."""

    @cell_magic("jaccl")
    def cell(self, line: str, cell: str) -> None:
        """Run the cell on all ranks: %%jaccl [--rank N] [--all] [--start].

        Rank 0's output shows as it is, other ranks' by line with their rank. In the cell are mx, group, rank,
        size, and stopping() for loops that ■ is to end. --rank N runs it on that rank alone (no collectives
        then), --all labels rank 0's output too, --start starts the ranks where there are none yet.
        """
        with briefly():
            options = _parse("%%jaccl", line, [("--rank", int), ("--all", bool), ("--start", bool)])
            run_cell(
                start_ranks() if options.start else need_ranks(), cell, rank=options.rank, label=options.all
            )

    @line_magic("jaccl")
    def line(self, line: str) -> Any:
        """Start, load, look, close: %jaccl start [HOSTFILE] [--ranks N] | load [MODEL] | status | close."""
        with briefly():
            what, *rest = shlex.split(line) or ["status"]
            if what == "start":
                options = _parse("%jaccl start", shlex.join(rest), [("hostfile", str), ("--ranks", int)])
                return Ranks.start(options.hostfile, count=options.ranks)
            if what == "load":
                took = need_ranks().load(rest[0] if rest else None)
                print(f"loaded in {took:.1f} s" if took else "it is loaded already")  # noqa: T201
                return None
            if what == "close":
                need_ranks().close()
                return None
            if what == "status":
                print(status(resident.current()))  # noqa: T201
                return None
            raise InputError(f"%jaccl {what}: not known", fix=f"There are: {HELP}.")

    @cell_magic("prompt")
    def prompt(self, line: str, cell: str) -> None:
        """Ask the loaded model, or the running server: %%prompt [--system S] [--max-tokens N]
        [--temperature T] [--top-p P] [--seed N]. Afterwards `answer` is the Answer.
        """
        from jaccl_kernel.notebook.prompting import prompt

        with briefly():
            options = _parse(
                "%%prompt",
                line,
                [("--system", str), ("--max-tokens", int), ("--temperature", float), ("--top-p", float),
                 ("--seed", int)],
            )  # fmt: skip
            given = {name: value for name, value in vars(options).items() if value is not None}
            self.shell.user_ns["answer"] = prompt(cell.strip(), **given)


def status(ranks: Ranks | None) -> str:
    """The ranks in a few lines."""
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
