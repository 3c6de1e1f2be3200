"""How fast the worker is: events a second, the time from publish to applied, and handing off warms.

Beside the bare loop over the same stream, and beside an arq job and a FastStream subscriber that invalidate the same.
Exit code 1 when a bar is not met.
"""

import argparse
import sys

import worker_backlog
import worker_peers
import worker_processes
import worker_rate
import worker_warms
from common import EXIT_FAILED, say, write_json
from rich.console import Console
from rich.table import Table
from tidings_worker.telemetry import configure_logging
from worker_rows import Outcome, Row, Run

ROWS: tuple[Row, ...] = (
    worker_backlog.ROW,
    *worker_peers.ROWS,
    worker_rate.ROW,
    worker_warms.ROW,
    worker_processes.ROW,
)


def show(outcomes: list[tuple[Row, Outcome]]) -> None:
    """Print a line for each row, and under it what there is to say."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "measured", "bar", ""):
        table.add_column(heading)
    for row, outcome in outcomes:
        table.add_row(row.title, outcome.figure, row.bar, "met" if outcome.met else "NOT met")
    Console(highlight=False, width=140).print(table)
    for row, outcome in outcomes:
        say(f"{row.name}: {outcome.note}")


def main() -> int:
    """Measure, print, and return 0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count, of each row; one more warms up")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads; 1 is what is quoted")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    configure_logging(verbose=False)
    run = Run(options.rounds, options.scale)
    outcomes = [(row, row.measure(run)) for row in ROWS if not options.only or row.name in options.only]
    if options.json:
        rows = {row.name: {"bar": row.bar, "met": outcome.met, **outcome.details} for row, outcome in outcomes}
        write_json({"scale": run.scale, "rows": rows})
    else:
        show(outcomes)
    return 0 if all(outcome.met for _, outcome in outcomes) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
