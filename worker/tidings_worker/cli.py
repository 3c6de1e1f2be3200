"""The command line, put together; each command is a module of `commands`."""

from collections.abc import Callable

import typer

from .commands import (
    demo,
    dlq,
    explain,
    groups,
    keys,
    lint,
    publishing,
    replay,
    simulate,
    stats,
    tail,
    verify,
    warms,
    worker,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Event-driven cache invalidation: publish what changed, and no cache serves what was.",
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run": (worker.worker, publishing.publish, publishing.invalidate, warms.warm, demo.demo),
    "Look": (explain.explain, tail.tail, groups.groups, stats.stats, warms.warms),
    "Check": (lint.lint, simulate.simulate, keys.keys, verify.verify, replay.replay),
}
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(dlq.app, name="dlq", rich_help_panel="Look")


def main() -> None:
    """Run the command line."""
    app()
