"""``tidings worker``."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from tidings import Settings, get_cache

from tidings_worker.embedded import EmbeddedServer
from tidings_worker.loading import load_rules
from tidings_worker.settings import WorkerSettings
from tidings_worker.signals import exit_on_signals
from tidings_worker.telemetry import configure_logging, log

from .base import reach_server, reporting


@reporting
def worker(
    rules: Annotated[str, typer.Argument(metavar="MODULE:RULES", help="the Rules to apply, as in myapp.rules:rules")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="log warnings and errors only")] = False,
) -> None:
    """Apply events: invalidate what they make wrong, warm what is read next. Runs until SIGTERM or Ctrl-C.

    Without TIDINGS_URL or REDIS_URL it starts a server of its own, with its data in .tidings/; other commands and
    services started in this folder find it.
    """
    from tidings_worker.app import serve  # noqa: PLC0415 no other command has to wait for what metrics need

    configure_logging(verbose=not quiet)
    worker_settings = WorkerSettings.load()
    exit_on_signals()  # until `serve` has its own handlers: a stop while the rules are imported stops the server too
    with ExitStack() as stack:
        own = Settings.load(development_server=False).url is None
        if own:
            server = stack.enter_context(EmbeddedServer(Path.cwd()))
            os.environ["TIDINGS_URL"] = server.url  # for the service's modules, which are about to be imported
            log.info("server_started", server=server.url, data=str(server.data))
        loaded = load_rules(rules)
        cache = get_cache()
        reach_server(cache.settings)
        exit_code = asyncio.run(serve(loaded, cache, worker_settings, owns_server=own))
    raise typer.Exit(exit_code)
