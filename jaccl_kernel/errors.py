"""Our own exceptions, spoken by both halves: each says what went wrong, where, and what to do.

Raised where the cause is known; never a bare errno. No mlx, no I/O.
"""


class JacclError(Exception):
    """The base of all errors that this package raises on purpose.

    Args:
        what: one sentence that names the cause.
        where: the node, rank, file or cell that it concerns, or "".
        fix: what to do about it, one or two sentences, or "".
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  Fix: {self.fix}" if self.fix else head


class HostfileError(JacclError):
    """A hostfile cannot be read, or is not one."""


class NodeError(JacclError):
    """Something went wrong on one node, or on the way to it."""


class NodeUnreachable(NodeError):
    """The node cannot be reached, or does not let us in: ssh's reason is in `what`."""


class CommandTimeout(NodeError):
    """A command on a node did not end before its deadline."""


class CommandFailed(NodeError):
    """A command on a node ended with another status than 0.

    Args:
        returncode: its exit status (negative: the signal that ended it).
        output: the last words of its stderr, or of its stdout if it wrote no stderr.
    """

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", returncode: int = 1, output: str = ""
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.returncode = returncode
        self.output = output


class ModelError(JacclError):
    """A model folder is missing, incomplete, damaged, or does not split as asked."""


class Stopped(JacclError):
    """The work was stopped by its user before it ended."""


class JobError(JacclError):
    """A job could not start, or did not end as it should."""


class RankDied(JobError):
    """One rank ended before its work was done.

    Args:
        rank: which one, counted from 0.
        returncode: its exit status (negative: the signal that ended it), None if it only went silent.
        last_words: the last lines that it wrote.
    """

    def __init__(
        self,
        what: str,
        *,
        rank: int,
        where: str = "",
        fix: str = "",
        returncode: int | None = None,
        last_words: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.rank = rank
        self.returncode = returncode
        self.last_words = last_words


class DeadlineExceeded(JobError):
    """A wait on the ranks ended at its deadline: `what` names what was waited for."""


class Busy(JobError):
    """A machine or a port that the job needs is in use by another job."""


class InputError(JacclError):
    """A value that the user gave makes no sense: it says which, and what would."""
