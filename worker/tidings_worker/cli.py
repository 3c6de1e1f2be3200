"""The command line, put together; each command is a module of `commands`."""

import typer

from .commands import demo, publishing, stats, worker

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
app.command()(demo.demo)


def main() -> None:
    """Run the command line."""
    app()
