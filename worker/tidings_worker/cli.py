"""The command line, put together; each command is a module of `commands`, imported when it is asked for.

A script that publishes one event need not wait for what `lint` is made of.
"""

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group


class _Place(NamedTuple):
    module: str
    #: under which heading it is listed
    panel: str


_COMMANDS = {
    "worker": _Place("worker", "Run"),
    "publish": _Place("publishing", "Run"),
    "invalidate": _Place("publishing", "Run"),
    "warm": _Place("warms", "Run"),
    "demo": _Place("demo", "Run"),
    "explain": _Place("explain", "Look"),
    "tail": _Place("tail", "Look"),
    "groups": _Place("groups", "Look"),
    "dlq": _Place("dlq", "Look"),
    "stats": _Place("stats", "Look"),
    "warms": _Place("warms", "Look"),
    "lint": _Place("lint", "Check"),
    "simulate": _Place("simulate", "Check"),
    "keys": _Place("keys", "Check"),
    "verify": _Place("verify", "Check"),
    "replay": _Place("replay", "Check"),
}


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 typer's signature; it has a click of its own, or not
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        found = getattr(import_module(f"tidings_worker.commands.{place.module}"), cmd_name)
        made: Any
        if isinstance(found, typer.Typer):
            made = get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command()(found)
            made = get_command(alone)
        made.name, made.rich_help_panel = cmd_name, place.panel
        return made


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Event-driven cache invalidation: publish what changed, and no cache serves what was.",
)


@app.callback()
def _tidings() -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
