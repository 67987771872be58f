"""`jaccl bench`: tokens per second over ranks, with the parity check."""

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import HostfileArgument, Json, command
from jaccl_kernel.core.options import FAST_SYNCH_RISK, BenchOptions


@command
def bench(hostfile: HostfileArgument, options: BenchOptions, *, json: Json = False) -> int:
    """Measure, and print the table or the record."""
    from jaccl_kernel.hostfile.hostfile import Hostfile
    from jaccl_kernel.report import parity, table
    from jaccl_kernel.report.record import failed_point
    from jaccl_kernel.steps.bench import bench as measure

    cluster = Hostfile.read(hostfile)
    reporter = terminal.reporter_for(cluster)
    if options.fast_synch:
        reporter.note(FAST_SYNCH_RISK)
    report = reporter.run(measure(cluster, options, on_event=reporter.event))
    if json:
        terminal.print_json(report.record)
    else:
        terminal.print_table(table.BENCH_COLUMNS, table.bench_rows(report.record))
        print(parity.Parity(**report.record["parity"]).sentence())
        print(f"Record: {report.path or 'not saved'}")
    for one in report.failed:
        terminal.fail(failed_point(one), 1)
    return 0 if report.ok else 1
