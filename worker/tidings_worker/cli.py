"""The command line, put together; each command is a module of `commands`."""

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
app.command()(worker.worker)
app.command()(publishing.publish)
app.command()(publishing.invalidate)
app.command()(stats.stats)
app.command()(explain.explain)
app.command()(verify.verify)
app.command()(tail.tail)
app.command()(lint.lint)
app.command()(keys.keys)
app.command()(simulate.simulate)
app.command()(demo.demo)
app.command()(replay.replay)
app.command()(groups.groups)
app.command()(warms.warms)
app.add_typer(dlq.app, name="dlq")


def main() -> None:
    """Run the command line."""
    app()
