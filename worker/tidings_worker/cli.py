"""The command line: ``tidings worker``, ``publish``, ``invalidate``, ``stats``, ``demo``.

Exit codes: 0 done, 1 the worker or the demo failed, 2 wrong usage or configuration or data, 3 Redis did not do its
part.
"""

import asyncio
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from tidings import Cache, Event, Settings, get_cache
from tidings.errors import ConfigurationError, PermanentError, TransientError
from tidings.operations import Ping

from .demo import PACKAGES, ROUNDS
from .embedded import EmbeddedServer
from .inspection import Stats, look
from .jobs import jobs_pool
from .loading import load_rules
from .servers import store_of
from .settings import WorkerSettings
from .signals import exit_on_signals
from .telemetry import configure_logging, log

P = ParamSpec("P")
R = TypeVar("R")

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Event-driven cache invalidation: publish what changed, and no cache serves what was.",
)
_errors = Console(stderr=True, highlight=False)
_out = Console(highlight=False)


def main() -> None:
    """Run the command line."""
    app()


def _reporting(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into one message and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            _check_arguments()
            return command(*args, **kwargs)
        except (ConfigurationError, PermanentError) as error:
            code = EXIT_USAGE
            message = str(error)
        except (TransientError, RedisError) as error:
            code = EXIT_UNAVAILABLE
            message = str(error)
        _errors.print(f"tidings: {message}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(code)

    return reported


def _check_arguments() -> None:
    """Raise ConfigurationError for an argument that is no text: events, names and tags are."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"the argument {argument!a} is not UTF-8") from None


@app.command()
@_reporting
def worker(
    rules: Annotated[str, typer.Argument(metavar="MODULE:RULES", help="the Rules to apply, as in myapp.rules:rules")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="log warnings and errors only")] = False,
) -> None:
    """Apply events: invalidate what they make wrong, warm what is read next. Runs until SIGTERM or Ctrl-C.

    Without TIDINGS_URL or REDIS_URL it starts a server of its own, with its data in .tidings/; other commands and
    services started in this folder find it.
    """
    from .app import serve  # noqa: PLC0415 no other command has to wait for what metrics need

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
        _reach_server(cache.settings)
        exit_code = asyncio.run(serve(loaded, cache, worker_settings, owns_server=own))
    raise typer.Exit(exit_code)


@app.command()
@_reporting
def publish(  # noqa: PLR0917 typer calls it by name
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="the event's type, as in user.updated")],
    data: Annotated[str, typer.Option(help="the event's data: JSON, @FILE, or - for standard input")] = "{}",
    subject: Annotated[str | None, typer.Option(help="what the event is about, as in user:42")] = None,
    rules: Annotated[str | None, typer.Option(help="MODULE:RULES whose event classes check the data first")] = None,
    wait: Annotated[float, typer.Option(help="seconds to wait until the event is applied; 0: do not wait")] = 0,
    replicas: Annotated[int, typer.Option(min=0, help="replicas that must have the event too")] = 0,
) -> None:
    """Publish one event, and print its stream id."""
    configure_logging(verbose=False)
    if rules is not None:
        load_rules(rules)
    event = _event(event_type, data)
    with _client_cache() as cache:
        receipt = cache.sync.publish(event, subject=subject, replicas=replicas)
        _out.print(receipt.id)
        if wait:
            receipt.applied(wait)
            _errors.print("applied", style="green")


@app.command()
@_reporting
def invalidate(
    namespace: Annotated[list[str] | None, typer.Option(help="a namespace; may be repeated")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="a tag; may be repeated")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every entry under the prefix")] = False,
) -> None:
    """Invalidate by hand, without an event. When it returns, no cache serves what was."""
    configure_logging(verbose=False)
    if not (namespace or tag or everything):
        raise ConfigurationError("nothing to invalidate: give --namespace, --tag or --all")
    with _client_cache() as cache:
        if everything:
            cache.sync.invalidate_all()
        else:
            cache.sync.invalidate(namespaces=namespace or (), tags=tag or ())


@app.command()
@_reporting
def stats(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Show the event stream, how far its groups are, what the workers have done, and the entries by namespace."""
    configure_logging(verbose=False)
    with _client_cache() as cache:
        _reach_server(cache.settings)  # says within the operation timeout that it is away or frozen
        found = asyncio.run(_look(cache))
        if as_json:
            sys.stdout.write(json.dumps({"server": cache.telemetry.server, **found.as_json()}) + "\n")
        else:
            _print_stats(cache.telemetry.server, found)


@app.command()
@_reporting
def demo(
    packages: Annotated[str, typer.Option(help="standard library packages, separated by commas")] = ",".join(PACKAGES),
    rounds: Annotated[int, typer.Option(min=1, help="times that a package changes")] = ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """See the whole of it work: a server, a worker, packages that change, readers that are never told old news.

    It uses a server and files of its own and leaves nothing behind.

    It exits 1 when a read is stale, a warm is missing or an event is lost.
    """
    from .demo.show import run  # noqa: PLC0415 it defines an event type, which the user's own rules may define too

    configure_logging(verbose=False)
    raise typer.Exit(run(packages.split(","), rounds, as_json=as_json))


def _event(event_type: str, data: str) -> Event:
    try:
        fields = json.loads(_text(data), parse_constant=_no_number, parse_float=_number)
    except ValueError as error:
        raise ConfigurationError(f"--data is not JSON: {error}") from None
    except RecursionError:
        raise ConfigurationError("--data is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ConfigurationError(f"--data is a JSON {type(fields).__name__}, not an object")
    return Event.of(event_type, fields)


def _text(data: str) -> str:
    """Return the text that ``--data`` stands for: itself, a file's, or that of standard input."""
    try:
        if data == "-":
            return sys.stdin.buffer.read().decode()
        return Path(data[1:]).read_text(encoding="utf-8") if data.startswith("@") else data
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--data {data}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigurationError(f"--data {data}: {error.strerror}") from None


def _number(text: str) -> float:
    """Read a JSON number with a fraction or an exponent; one beyond a float's range would become infinite."""
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that an event can carry")


@contextmanager
def _client_cache() -> Iterator[Cache]:
    """Give the cache that the environment, or the server of this folder, configures."""
    settings = Settings.load()
    if settings.url is None:
        raise ConfigurationError(
            "no server: set TIDINGS_URL, or start `tidings worker` in this folder, which brings its own"
        )
    _check_is_server(settings)
    cache = Cache.from_settings(settings)
    try:
        yield cache
    finally:
        cache.sync.close()


def _check_is_server(settings: Settings) -> None:
    """Raise ConfigurationError where there would only be this process's own memory."""
    if settings.url is None or settings.url.get_secret_value().startswith("memory://"):
        raise ConfigurationError("this command needs a server, not a cache in memory: set TIDINGS_URL to one")


def _reach_server(settings: Settings) -> None:
    """Raise UnavailableError when the server, or a node of the cluster, does not answer."""
    _check_is_server(settings)
    with Cache.from_settings(settings).sync as probe:
        probe.reader.store.run(Ping())


async def _look(cache: Cache) -> Stats:
    jobs = jobs_pool(cache.settings)
    try:
        return await look(store_of(cache), jobs, cache.keys, cache.settings.partitions)
    finally:
        await jobs.aclose()
        await cache.aclose()


def _print_stats(server: str, stats: Stats) -> None:
    table = Table("what", "count", title=server, title_justify="left", box=None, pad_edge=False)
    table.add_row("events in the stream", str(stats.events))
    for group in stats.groups:
        lag = "?" if group.lag is None else str(group.lag)
        table.add_row(
            f"  group {group.name} of {group.stream}",
            f"{lag} to read, {group.pending} pending, {group.consumers} consumers",
        )
    table.add_row("dead letters", str(stats.dead_letters))
    table.add_row("invalidations in the log", str(stats.invalidations_logged))
    table.add_row("warms queued", str(stats.warms_queued))
    for name, count in stats.worker.items():
        table.add_row(f"worker: {name}", str(count))
    more = "" if stats.entries_complete else " or more"
    for namespace, count in stats.entries.items():
        table.add_row(f"entries in {namespace}", f"{count}{more}")
    _out.print(table)
