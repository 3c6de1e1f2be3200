"""What the commands share: errors as one message and an exit code, the cache of the environment, and how they print.

Exit codes: 0 done, 1 something is wrong or failed, 2 wrong usage or configuration or data, 3 Redis did not do its part.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from redis.exceptions import RedisError
from rich.console import Console
from tidings import Cache, Settings
from tidings.errors import ConfigurationError, PermanentError, TransientError
from tidings.operations import Ping

P = ParamSpec("P")
R = TypeVar("R")

EXIT_FOUND = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3

#: Columns where nobody looks at a screen: lines stay whole for whoever searches them.
_PIPED = 1000

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED
    # Names are no markup, and ":key:" in one is no picture of a key.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


errors = _console(stderr=True)
out = _console()


def print_json(document: Any) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(document, default=str) + "\n")
    sys.stdout.flush()


def several(number: int, one: str, more: str = "") -> str:
    """Return a number with what it counts: ``1 load``, ``2 loads``; `more` where another word is for several."""
    return f"{number or 'no'} {one if number == 1 else more or f'{one}s'}"


def reporting(command: Callable[P, R]) -> Callable[P, R]:
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
        errors.print(f"tidings: {message}", style="red", soft_wrap=True)
        raise typer.Exit(code)

    return reported


def _check_arguments() -> None:
    """Raise ConfigurationError for an argument that is no text: events, names and tags are."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"the argument {argument!a} is not UTF-8") from None


@contextmanager
def client_cache(settings: Settings | None = None) -> Iterator[Cache]:
    """Give a cache of these settings; None: of those that the environment, or the server of this folder, configures."""
    settings = settings or Settings.load()
    if settings.url is None:
        raise ConfigurationError(
            "no server: set TIDINGS_URL, or start `tidings worker` in this folder, which brings its own"
        )
    check_is_server(settings)
    cache = Cache.from_settings(settings)
    try:
        yield cache
    finally:
        cache.sync.close()


def check_is_server(settings: Settings) -> None:
    """Raise ConfigurationError where there would only be this process's own memory."""
    if settings.url is None or settings.url.get_secret_value().startswith("memory://"):
        raise ConfigurationError("this command needs a server, not a cache in memory: set TIDINGS_URL to one")


def reach_server(settings: Settings) -> None:
    """Raise UnavailableError when the server, or a node of the cluster, does not answer."""
    check_is_server(settings)
    with Cache.from_settings(settings).sync as probe:
        probe.reader.store.run(Ping())
