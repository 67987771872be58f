"""The exceptions of both halves: each has what failed, where, and the fix.

They are raised where the cause is known, never with a bare errno. No mlx, no I/O.
"""


class JacclError(Exception):
    """The base class of all errors that this package raises deliberately.

    Args:
        what: one sentence with the cause.
        where: the node, rank, file or cell, or "".
        fix: how to fix it, in one or two sentences, or "".
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
    """A hostfile is unreadable or invalid."""


class NodeError(JacclError):
    """An operation on a node, or the connection to it, failed."""


class NodeUnreachable(NodeError):
    """The connection to the node or the authentication failed; `what` has ssh's reason."""


class CommandTimeout(NodeError):
    """A command on a node exceeded its deadline."""


class CommandFailed(NodeError):
    """A command on a node ended with a non-zero exit status.

    Args:
        returncode: its exit status (negative: the signal that killed it).
        output: the last lines of its stderr, or of its stdout if stderr is empty.
    """

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", returncode: int = 1, output: str = ""
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.returncode = returncode
        self.output = output


class ModelError(JacclError):
    """A model folder is missing, incomplete or damaged, or the model does not support the requested split."""


class Stopped(JacclError):
    """The user stopped the operation."""


class JobError(JacclError):
    """A job did not start or did not end successfully."""


class RankDied(JobError):
    """A rank ended before it finished its work.

    Args:
        rank: its number, from 0.
        returncode: its exit status (negative: the signal that killed it), None if it stopped responding.
        last_lines: the last lines of its output.
    """

    def __init__(
        self,
        what: str,
        *,
        rank: int,
        where: str = "",
        fix: str = "",
        returncode: int | None = None,
        last_lines: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.rank = rank
        self.returncode = returncode
        self.last_lines = last_lines


class DeadlineExceeded(JobError):
    """A wait for ranks exceeded its deadline; `what` names the condition."""


class Busy(JobError):
    """Another job uses a machine or a port that the job needs."""


class InputError(JacclError):
    """A user-supplied value is invalid; the message names the value and the valid ones."""


class UnknownModel(ModelError, InputError):
    """The named model is not on this machine: neither a folder nor in the Hugging Face cache."""
