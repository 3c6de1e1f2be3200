"""What a cached read costs, for ours and for the peers, as ratios to a bare redis-py GET in the same round.

Every result is decoded into its model, ours with 3 tags checked. Exit code 1 when a bar is not met.
"""

import argparse
import sys

import read_hits
import read_outage
import read_stampede
from common import EXIT_FAILED, say, write_json
from rows import Row, Run, table

ROWS: tuple[Row, ...] = (*read_hits.ROWS, read_stampede.ROW, read_outage.ROW)


def main() -> int:
    """Measure, print, and return 0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count, of each row")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--uvloop", action="store_true", help="run coroutines on uvloop")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    run = Run(options.rounds, options.uvloop)
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    outcomes = [(row, row.measure(run)) for row in rows]
    unmet = [row for row, outcome in outcomes if not outcome.met]
    if options.json:
        report = {row.name: {"bar": row.bar, "met": outcome.met, **outcome.details} for row, outcome in outcomes}
        write_json({"uvloop": run.uvloop, "rows": report})
    else:
        sys.stdout.write(table(outcomes) + "\n")
        for row in unmet:
            say(f"NOT met: {row.title}, at most {row.bar}")
    return EXIT_FAILED if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
