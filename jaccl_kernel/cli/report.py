"""`jaccl report`: a saved record as a table, HTML or CSV, or compared with another one."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import command
from jaccl_kernel.core.errors import InputError, JacclError


@command
def report(
    record: Annotated[
        Path | None, Parameter(help="Record", show_default="the newest in the results folder")
    ] = None,
    *,
    html: Annotated[Path | None, Parameter(help="Write one page that opens offline", metavar="FILE")] = None,
    csv: Annotated[
        Path | None,
        Parameter(help="Write the table; - for stdout", metavar="FILE", allow_leading_hyphen=True),
    ] = None,
    against: Annotated[
        Path | None, Parameter(help="Earlier record to compare the rates with", metavar="RECORD")
    ] = None,
) -> int:
    """Show or convert a record."""
    from jaccl_kernel.core.paths import results_dir
    from jaccl_kernel.report import page
    from jaccl_kernel.report import record as records

    path = record or next(iter(records.saved(kind="*")), None)
    if path is None:
        raise InputError("there is no record yet", where=str(results_dir()), fix="Run: jaccl bench FILE.")
    found = records.read(path)
    if html:
        _write(html, page.to_html(found))
    if csv:
        _write(csv, page.to_csv(found))
    if against:
        rows = page.compare(records.read(against), found)
        if not rows:
            raise InputError("the two records have no setting in common", where=f"{against}, {path}")
        terminal.print_table(page.COMPARE_COLUMNS, rows)
    elif not (html or csv):
        print(f"{path}, {found['provenance']['date']}")
        terminal.print_table(*page.rows_of(found))
        for text in page.failures(found):
            print(f"failed: {text}")
    return 0


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise JacclError(f"cannot write the file: {error.strerror}", where=str(path)) from error
