"""``tidings worker``."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from tidings import Settings, get_cache

from tidings_worker.embedded import EmbeddedServer
from tidings_worker.hangups import HangUps
from tidings_worker.loading import RulesTargets
from tidings_worker.settings import WorkerSettings
from tidings_worker.signals import exit_on_signals
from tidings_worker.telemetry import configure_logging, log

from .base import reach_server, reporting


@reporting
def worker(
    rules: Annotated[
        list[str],
        typer.Argument(metavar="TARGET", help="rules to apply: MODULE:RULES, as in myapp.rules:rules, or FILE.toml"),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="log warnings and errors only")] = False,
) -> None:
    """Apply events: invalidate what they make wrong, warm what is read next. Runs until SIGTERM or Ctrl-C.

    Without TIDINGS_URL or REDIS_URL it starts a server of its own, with its data in .tidings/; other commands and
    services started in this folder find it. SIGHUP: read the .toml files again, and use them if they are valid.
    """
    hang_ups = HangUps()
    hang_ups.listen()
    from tidings_worker.app import serve  # noqa: PLC0415 no other command has to wait for what metrics need
    from tidings_worker.reloading import Reloads  # noqa: PLC0415 as above

    configure_logging(verbose=not quiet)
    worker_settings = WorkerSettings.load()
    exit_on_signals()  # until `serve` has its own handlers: a stop while the rules are imported stops the server too
    with ExitStack() as stack:
        stack.callback(hang_ups.ignore)
        own = Settings.load(development_server=False).url is None
        if own:
            server = stack.enter_context(EmbeddedServer(Path.cwd()))
            os.environ["TIDINGS_URL"] = server.url  # for the service's modules, which are about to be imported
            log.info("server_started", server=server.url, data=str(server.data))
        targets = RulesTargets(rules)
        loaded = targets.load()
        cache = get_cache()
        reach_server(cache.settings)
        exit_code = asyncio.run(
            serve(loaded, cache, worker_settings, owns_server=own, reloads=Reloads(targets, hang_ups))
        )
    raise typer.Exit(exit_code)
