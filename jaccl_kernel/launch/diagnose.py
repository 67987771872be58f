"""Finds the root cause of a failed job, and its fix, from the ranks' output and exit statuses. Pure.

`known_errors.toml` lists the errors of JACCL, MLX, mlx-lm, Metal, ssh, shells and macOS, the most specific
first, each with its causes in order of likelihood. `secondary` marks errors that a rank reports because
something else failed first: they are never the cause while a primary one is known.
"""

import re
import shlex
import signal
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jaccl_kernel.core.errors import RankDied
from jaccl_kernel.launch.job import RankState

TABLE = Path(__file__).with_name("known_errors.toml")


@dataclass(frozen=True)
class Cause:
    """A possible cause of an error; `check` is a command or an observation that confirms it."""

    cause: str
    check: str
    fix: str


@dataclass(frozen=True)
class KnownError:
    """An entry of the table: the lines that it explains, and their causes, the most likely first.

    `when` restricts it to texts in which that pattern occurs too.
    """

    patterns: tuple[re.Pattern[str], ...]
    causes: tuple[Cause, ...]
    when: re.Pattern[str] | None = None
    secondary: bool = False
    sources: tuple[str, ...] = ()

    def match(self, line: str) -> re.Match[str] | None:
        """The match of the first pattern that occurs in the line."""
        return next((match for pattern in self.patterns if (match := pattern.search(line))), None)


@dataclass(frozen=True)
class Explanation:
    """A line of a text with the causes of its error, for one host."""

    line: str
    causes: tuple[Cause, ...]
    secondary: bool
    sources: tuple[str, ...]


@cache
def known_errors() -> tuple[KnownError, ...]:
    """The table, the most specific entry first."""
    return tuple(
        KnownError(
            patterns=tuple(map(re.compile, entry["patterns"])),
            causes=tuple(Cause(**cause) for cause in entry["causes"]),
            when=re.compile(entry["when"]) if "when" in entry else None,
            secondary=entry.get("secondary", False),
            sources=tuple(entry.get("sources", ())),
        )
        for entry in tomllib.loads(TABLE.read_text(encoding="utf-8"))["errors"]
    )


def explain(text: str, host: str = "", hostfile: str = "FILE") -> list[Explanation]:
    """The known errors in a text, primary ones first, in the order of the table; each once.

    Args:
        text: the output of one rank, or what a user saw.
        host: the node that printed it, if known.
        hostfile: its path, for the commands.
    """
    found: dict[int, Explanation] = {}
    applicable = [
        (number, known)
        for number, known in enumerate(known_errors())
        if not known.when or known.when.search(text)
    ]
    for line in text.splitlines():
        for number, known in applicable:
            if match := known.match(line):
                causes = tuple(_causes(known, match, host, hostfile))
                found.setdefault(number, Explanation(line.strip(), causes, known.secondary, known.sources))
                break
    return [found[number] for number in sorted(found, key=lambda number: (found[number].secondary, number))]


def _causes(known: KnownError, match: re.Match[str], host: str, hostfile: str) -> Iterator[Cause]:
    values = {"host": host or "that Mac", "ssh": host or "HOST", **match.groupdict()}

    def fill(text: str) -> str:
        filled = re.sub(r"\{(\w+)\}", lambda name: values.get(name[1]) or "", text)
        return re.sub(r"\bFILE\b", lambda _: hostfile, filled)

    for cause in known.causes:
        yield Cause(fill(cause.cause), fill(cause.check), fill(cause.fix))


def root_cause(ranks: Sequence[RankState], hostfile: Path | None = None) -> RankDied:
    """The error of the rank that failed first: its last lines of output, every possible cause, and the fixes.

    Order of preference: a known primary error, a death by signal, any other error, then the earliest exit. A
    rank that only lost a peer comes last; if no rank has another error, the text says what else it can be.
    """
    suspects = [rank for rank in ranks if rank.error or (rank.returncode not in (None, 0) or not rank.done)]
    suspects = [rank for rank in suspects if rank.error or rank.returncode is not None] or list(ranks)
    culprit = min(suspects, key=_preference)
    stage = culprit.error.stage if culprit.error else culprit.stage
    path = shlex.quote(str(hostfile)) if hostfile else "FILE"
    found = explain(_output(culprit), culprit.name, path)
    if not found and culprit.returncode is not None:
        found = explain(f"stage: {stage}\n{describe_exit(culprit.returncode)}", culprit.name, path)
    causes = found[0].causes if found else ()
    if found and found[0].secondary:
        cause = f" (no rank reported a first cause; {causes[0].cause})"
    else:
        cause = f" ({'most likely: ' * (len(causes) > 1)}{causes[0].cause})" if causes else ""
    own_fix = culprit.error.fix if culprit.error else ""
    return RankDied(
        f"rank {culprit.number} {_describe_failure(culprit)} at stage '{stage}'{cause}",
        rank=culprit.number,
        where=culprit.name,
        fix=own_fix or describe_fixes(causes),
        returncode=culprit.returncode,
        last_lines=tuple(culprit.tail)[-8:],
    )


def describe_fixes(causes: Sequence[Cause]) -> str:
    """The fix of the most likely cause, then the other causes, each with its check and fix, one per line."""
    first, *others = causes or (Cause("", "", ""),)
    return "\n".join(
        [first.fix, *(f"  Or {other.cause}. Check: {other.check}. Fix: {other.fix}" for other in others)]
    )


def _describe_failure(rank: RankState) -> str:
    if rank.error:
        message = rank.error.message.strip()
        return f"failed with {rank.error.type}: {message.splitlines()[-1] if message else ''}"
    if rank.returncode is None:
        return "stopped responding"
    return f"died ({describe_exit(rank.returncode)})"


def describe_exit(returncode: int) -> str:
    """An exit status as text: "exit status 1", "killed by SIGKILL"."""
    number = -returncode if returncode < 0 else returncode - 128  # a shell's 137 is SIGKILL too
    if returncode < 0 or returncode > 128:
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"exit status {returncode}"
        hint = {"SIGSEGV": ", a segmentation fault", "SIGKILL": ", possibly out of memory"}.get(name, "")
        return f"killed by {name}{hint}"
    return f"exit status {returncode}"


def _output(rank: RankState) -> str:
    own = rank.error.message if rank.error else ""
    stage = rank.error.stage if rank.error else rank.stage
    return "\n".join([f"stage: {stage}", *rank.tail, own])


def _preference(rank: RankState) -> tuple[int, float]:
    known = explain(_output(rank))
    at = min(rank.failed_at or float("inf"), rank.ended_at or float("inf"))
    if known:
        return (3 if known[0].secondary else 0), at
    if rank.returncode is not None and (rank.returncode < 0 or rank.returncode > 128):
        return 1, at
    return 2, at
