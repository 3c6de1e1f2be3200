"""``tidings demo``."""

from typing import Annotated

import typer

from tidings_worker.demo import PACKAGES, ROUNDS
from tidings_worker.telemetry import configure_logging

from .base import reporting


@reporting
def demo(
    packages: Annotated[str, typer.Option(help="standard library packages, separated by commas")] = ",".join(PACKAGES),
    rounds: Annotated[int, typer.Option(min=1, help="times that a package changes")] = ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """See the whole of it work: a server, a worker, packages that change, readers that are never told old news.

    It uses a server and files of its own and leaves nothing behind.

    It exits 1 when a read is stale, a warm is missing or an event is lost.
    """
    from tidings_worker.demo.show import run  # noqa: PLC0415 it defines an event type, which the user's own rules may define too

    configure_logging(verbose=False)
    raise typer.Exit(run(packages.split(","), rounds, as_json=as_json))
