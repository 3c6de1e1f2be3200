"""``tidings publish`` and ``tidings invalidate``: what services do, by hand."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from tidings import Event
from tidings.errors import ConfigurationError

from tidings_worker.loading import load_rules
from tidings_worker.telemetry import configure_logging

from .base import client_cache, errors, out, reporting


@reporting
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
    with client_cache() as cache:
        receipt = cache.sync.publish(event, subject=subject, replicas=replicas)
        out.print(receipt.id)
        if wait:
            receipt.applied(wait)
            errors.print("applied", style="green")


@reporting
def invalidate(
    namespace: Annotated[list[str] | None, typer.Option(help="a namespace; may be repeated")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="a tag; may be repeated")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every entry under the prefix")] = False,
) -> None:
    """Invalidate by hand, without an event. When it returns, no cache serves what was."""
    configure_logging(verbose=False)
    if not (namespace or tag or everything):
        raise ConfigurationError("nothing to invalidate: give --namespace, --tag or --all")
    with client_cache() as cache:
        if everything:
            cache.sync.invalidate_all()
        else:
            cache.sync.invalidate(namespaces=namespace or (), tags=tag or ())


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
