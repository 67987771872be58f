"""`jaccl report`: a saved record as a table, a page to share, CSV; or held against another one."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import InputError, JacclError


def add(commands: Any) -> None:
    """Add `jaccl report`."""
    report = commands.add_parser(
        "report", help="a record of a benchmark, sweep or load test: as a table, HTML or CSV; or two compared"
    )
    report.add_argument("record", type=Path, nargs="?", help="default: the newest in the results folder")
    report.add_argument("--html", type=Path, metavar="FILE", help="write one page that opens offline")
    report.add_argument("--csv", type=Path, metavar="FILE", help="write its table; - for stdout")
    report.add_argument("--against", type=Path, metavar="RECORD", help="an earlier record: rates of both")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from jaccl_kernel.paths import results_dir
    from jaccl_kernel.report import page, record, table

    path = options.record or next(iter(record.saved(kind="*")), None)
    if path is None:
        raise InputError(
            "there is no record yet", where=str(results_dir()), fix="Make one: jaccl bench FILE."
        )
    found = record.read(path)
    if options.html:
        _write(options.html, page.to_html(found))
    if options.csv:
        _write(options.csv, page.to_csv(found))
    if options.against:
        rows = page.compare(record.read(options.against), found)
        if not rows:
            raise InputError("the two records have no setting in common", where=f"{options.against}, {path}")
        print(table.render(page.COMPARE_COLUMNS, rows))
    elif not (options.html or options.csv):
        print(f"{path}, {found['provenance']['date']}")
        print(table.render(*page.rows_of(found)))
        for told in page.failures(found):
            print(f"failed: {told}")
    return 0


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise JacclError(f"could not be written: {error.strerror}", where=str(path)) from error
