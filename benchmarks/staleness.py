"""How many reads return what was invalidated before they began, when loads race with invalidations.

Ours must be none of 100 000 reads, over all its modes but those with the local tier: there a stale read may begin
within the tail's lag after the acknowledgement, which is printed, and none later than the tier's bound. When all is
over no key may be stale in any mode. `race.py` has the race. Exit code 1 when it is not so.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from common import EXIT_FAILED, quantile, say, server, write_json
from race import Mode, Tally, race
from race_modes import MODES
from redis import Redis

#: Reads that a watch takes for one read of a race: it must see some hundred changes.
WATCHED = 30


@dataclass(frozen=True)
class Result:
    """One mode's figures."""

    mode: Mode
    tally: Tally

    @property
    def wrong(self) -> int:
        """How many reads may not have returned what they did; with a bound, how many changes were missed for longer."""
        late = sum(lag > self.mode.bound for lag in self.tally.lags.values()) if self.mode.bound else self.tally.stale
        return late + self.tally.left

    @property
    def lags(self) -> list[float]:
        """For each change, the seconds from its acknowledgement to the last read that did not know it, or 0."""
        seen = list(self.tally.lags.values())
        return seen + [0.0] * max(0, self.tally.changes - len(seen))

    def as_json(self) -> dict[str, Any]:
        """Return what is printed."""
        tally = self.tally
        counts = {
            name: getattr(tally, name) for name in ("reads", "stale", "loads", "overtaken", "changes", "left", "failed")
        }
        lag_ms = {f"lag_{name}_ms": 1000 * quantile(self.lags, q) for name, q in LAGS.items()}
        return {**counts, "ours": self.mode.ours, "bound_s": self.mode.bound, "wrong": self.wrong, **lag_ms}


LAGS = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def measure(modes: list[Mode], reads: int) -> list[Result]:
    """Race in one mode after the other, each on an empty server."""
    results = []
    with server() as url, Redis.from_url(url) as client:
        for mode in modes:
            client.flushall()
            results.append(Result(mode, race(mode, url, reads * WATCHED if mode.watch else reads)))
            sys.stderr.write(f"{line(results[-1])}\n")
    return results


def line(result: Result) -> str:
    """Return a line of the table."""
    tally = result.tally
    counts = f"{tally.reads:8} | {tally.loads:8} | {tally.overtaken:9} | {tally.stale:8}"
    share = f"{tally.stale / tally.reads:7.2%}"
    lags = " / ".join(f"{1000 * quantile(result.lags, q):.1f}" for q in LAGS.values()) if tally.stale else "-"
    return f"| {result.mode.name:44} | {counts} | {share} | {tally.left:4} | {lags:>20} |"


HEADING = (
    f"| {'':44} |    reads |    loads | overtaken |    stale |         | left |   lag ms p50/p99/max |\n"
    f"| {'-' * 44} | -------: | -------: | --------: | -------: | ------: | ---: | -------------------: |"
)


def main() -> int:
    """Race, print, and return 0 when ours was never wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--reads", type=int, default=100_000, help="reads of all our modes together, but for those with the local tier"
    )
    parser.add_argument("--only", help="modes whose name contains this")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    modes = [mode for mode in MODES if not options.only or options.only in mode.name]
    each = -(-options.reads // max(1, sum(mode.ours and not mode.bound for mode in MODES)))
    results = measure(modes, each)
    own = [result for result in results if result.mode.ours]
    reads = sum(result.tally.reads for result in own if not result.mode.bound)
    stale = sum(result.tally.stale for result in own if not result.mode.bound)
    wrong = sum(result.wrong for result in own)
    overtaken = sum(result.tally.overtaken for result in own)
    if options.json:
        write_json(
            {
                "modes": {one.mode.name: one.as_json() for one in results},
                "reads": reads,
                "overtaken": overtaken,
                "wrong": wrong,
            }
        )
    else:
        sys.stdout.write("\n".join([HEADING, *map(line, results)]) + "\n")
        for result in results:
            if result.tally.failed:
                say(f"{result.mode.name}: {result.tally.failed} reads raised")
        say(f"ours, without the local tier: {stale} stale of {reads} reads")
        say(f"ours, all modes: {wrong} wrong; changes overtook {overtaken} loads")
    return EXIT_FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
