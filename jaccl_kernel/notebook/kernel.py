"""The JACCL kernel: a Jupyter kernel whose cells run on all ranks. A second door to the same Ranks.

It is IPython's own kernel, in which a cell goes through `%%jaccl --start` unless it says otherwise: one that
begins with `%%local` runs here, and so do `%jaccl`, `%%jaccl` and `%%prompt`. Rank 0 answers completion and
inspection. The ranks leave with the kernel.
"""

from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from jaccl_kernel import __version__
from jaccl_kernel.errors import JacclError
from jaccl_kernel.notebook import resident

LOCAL = "%%local"
OURS = ("%jaccl", "%%jaccl", "%%prompt", "%load_ext jaccl_kernel")


def everywhere(lines: list[str]) -> list[str]:
    """A cell's lines, sent to all ranks unless the first one says that they stay here."""
    at = next((number for number, line in enumerate(lines) if line.strip()), None)
    if at is None or _stays(lines[at]):
        return lines
    if _is_local(lines[at]):
        return lines[at + 1 :]
    return ["%%jaccl --start\n", *lines]


def is_local(code: str) -> bool:
    """Whether a cell runs in the kernel itself."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    return _is_local(first) or _stays(first)


class JacclKernel(IPythonKernel):
    """See the module."""

    implementation = "jaccl"
    implementation_version = __version__
    banner = "Every cell runs on all ranks; %%local keeps one here; %jaccl load [MODEL] loads a model."

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shell.extension_manager.load_extension("jaccl_kernel")
        # before IPython's own: they turn %%local into a call of a magic that there is not
        self.shell.input_transformer_manager.cleanup_transforms.insert(0, everywhere)

    def do_complete(self, code: str, cursor_pos: int) -> Any:
        """What could stand here: as rank 0 knows it."""
        return self._ask_rank_0("do_complete", code, cursor_pos) or super().do_complete(code, cursor_pos)

    def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()) -> Any:
        """What stands here: as rank 0 knows it."""
        told = self._ask_rank_0("do_inspect", code, cursor_pos, detail_level)
        return told or super().do_inspect(code, cursor_pos, detail_level, omit_sections)

    async def do_shutdown(self, restart: bool) -> Any:
        """End the ranks first: their lifeline would, but not before the next ones could be started."""
        if ranks := resident.current():
            ranks.close()
        told = super().do_shutdown(restart)
        return await told if hasattr(told, "__await__") else told

    def _ask_rank_0(self, what: str, code: str, *more: int) -> Any:
        ranks = resident.current()
        if ranks is None or is_local(code):
            return None
        try:
            return ranks.ask_kernel(what, code, *more)
        except JacclError:
            return None  # they are at work, or just gone: the kernel itself knows Python at least


def _is_local(line: str) -> bool:
    return line.strip() == LOCAL


def _stays(line: str) -> bool:
    return line.lstrip().startswith(OURS)


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=JacclKernel)
