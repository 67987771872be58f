"""`docs/cli.md`, made from the commands themselves: `make docs` prints it, and a test finds a stale one."""

from jaccl_kernel.cli.main import make_app

NOTE = "<!-- Made by `make docs` from jaccl_kernel/cli and jaccl_kernel/core/options.py; do not edit. -->"


def markdown() -> str:
    """The reference of all commands."""
    return f"{NOTE}\n\n{make_app().generate_docs().strip()}\n"


if __name__ == "__main__":
    print(markdown(), end="")
