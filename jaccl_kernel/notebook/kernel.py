"""The JACCL kernel: a Jupyter kernel whose cells run on all resident ranks.

It is IPython's kernel, which runs a cell with `%%jaccl --start`, except cells that begin with `%%local` (they
run in the kernel), `%jaccl`, `%%jaccl` or `%%prompt`. Rank 0 answers completions and inspections. The ranks
end with the kernel.
"""

from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.notebook import resident

LOCAL = "%%local"
OURS = ("%jaccl", "%%jaccl", "%%prompt", "%load_ext jaccl_kernel")


def everywhere(lines: list[str]) -> list[str]:
    """A cell's lines for all ranks, or unchanged if the first line keeps them in the kernel."""
    at = next((number for number, line in enumerate(lines) if line.strip()), None)
    if at is None or _runs_here(lines[at]):
        return lines
    if _is_local(lines[at]):
        return lines[at + 1 :]
    return ["%%jaccl --start\n", *lines]


def is_local(code: str) -> bool:
    """Whether a cell runs in the kernel."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    return _is_local(first) or _runs_here(first)


class JacclKernel(IPythonKernel):
    """The kernel; see the module."""

    implementation = "jaccl"
    implementation_version = __version__
    banner = "Cells run on all ranks; %%local runs one in the kernel; %jaccl load [MODEL] loads a model."

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shell.extension_manager.load_extension("jaccl_kernel")
        # before IPython's own, which would call %%local as a magic
        self.shell.input_transformer_manager.cleanup_transforms.insert(0, everywhere)

    def do_complete(self, code: str, cursor_pos: int) -> Any:
        """Completions, from rank 0 if possible."""
        return self._ask_rank_0("do_complete", code, cursor_pos) or super().do_complete(code, cursor_pos)

    def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()) -> Any:
        """The inspection of an object, from rank 0 if possible."""
        reply = self._ask_rank_0("do_inspect", code, cursor_pos, detail_level)
        return reply or super().do_inspect(code, cursor_pos, detail_level, omit_sections)

    async def do_shutdown(self, restart: bool) -> Any:
        """End the ranks, then the kernel: new ranks may start right after a restart."""
        if ranks := resident.current():
            ranks.close()
        reply = super().do_shutdown(restart)
        return await reply if hasattr(reply, "__await__") else reply

    def _ask_rank_0(self, what: str, code: str, *more: int) -> Any:
        ranks = resident.current()
        if ranks is None or is_local(code):
            return None
        try:
            return ranks.calls.ask_kernel(what, code, *more)
        except JacclError:
            return None  # busy or down: the kernel itself knows Python's names at least


def _is_local(line: str) -> bool:
    return line.strip() == LOCAL


def _runs_here(line: str) -> bool:
    return line.lstrip().startswith(OURS)


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=JacclKernel)
