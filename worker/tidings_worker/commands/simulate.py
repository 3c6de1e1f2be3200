"""``tidings simulate``."""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from tidings import Cache, Envelope, Settings, get_cache, set_cache
from tidings.errors import ConfigurationError
from tidings.events import IgnoredEventError, from_fields, to_fields

from tidings_worker.lint.readers import readers_of
from tidings_worker.loading import load_rules
from tidings_worker.project import modules_of
from tidings_worker.registry import shown_path
from tidings_worker.servers import store_of
from tidings_worker.settings import WorkerSettings
from tidings_worker.simulating import Effect, Hit, effects, hits
from tidings_worker.telemetry import configure_logging

from .base import EXIT_FOUND, AsJson, errors, out, print_json, reach_server, reporting
from .given import event_given, text_given

#: Where an event that is made up here would be.
_NOWHERE = "simulated"

_THEN = {True: "tried again, then a dead letter", False: "a dead letter", None: "the worker waits for it in vain"}

_STREAM_ID = re.compile(r"\d+-\d+")


@reporting
def simulate(  # noqa: PLR0917 typer calls it by name
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="TARGET... TYPE", help="rules, MODULE:RULES or FILE.toml, and then the event's type"),
    ],
    data: Annotated[
        str | None, typer.Option(help="the event's data: JSON, @FILE, or - for standard input", show_default="{}")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="what the event is about, as in user:42")] = None,
    entry: Annotated[str | None, typer.Option(help="the id of an entry of the stream, in place of TYPE")] = None,
    fields: Annotated[
        str | None,
        typer.Option(help="the fields of a stream entry as another system writes it, in place of TYPE: as --data"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an event would do under these rules, and do nothing: what each rule invalidates and warms.

    In --fields a value that is an object or a list stands for its JSON text. Only --entry asks the server. Exits 1 when
    no rule is for the event, one fails over it or the worker ignores it, and 2 for data that are no event.
    """
    configure_logging(verbose=False)
    if entry is not None and fields is not None:
        raise ConfigurationError("--entry and --fields are two events; give one of them")
    is_whole = entry is not None or fields is not None
    if is_whole and (data is not None or subject is not None):
        raise ConfigurationError("--entry and --fields are whole events; --data and --subject go with a TYPE")
    targets = arguments if is_whole else arguments[:-1]
    if not targets:
        raise ConfigurationError("give the rules and then the event's type, as in myapp.rules:rules user.updated")
    set_cache(Cache.from_settings(Settings.load()))
    rules = load_rules(targets)
    cache = get_cache()  # as the worker: the rules' modules may have configured it
    try:
        if entry is not None:
            envelope = asyncio.run(_of_entry(cache, entry))
        elif fields is not None:
            envelope = _decoded(_NOWHERE, "0-0", _fields(fields))
        else:
            event = event_given(arguments[-1], "{}" if data is None else data)
            written = to_fields(event, source=_NOWHERE, subject=subject)
            envelope = _decoded(_NOWHERE, "0-0", {name.encode(): value.encode() for name, value in written.items()})
    except IgnoredEventError as error:
        if as_json:
            print_json({"ignored": str(error), "rules": []})
        errors.print(f"tidings: the worker ignores it: {error}", style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_FOUND) from None
    found = effects(rules, envelope, cache.keys)
    roots = [target.partition(":")[0] for target in targets if not target.endswith(".toml")]
    hit = hits(found, readers_of(module.__name__ for module in modules_of(roots)))
    if as_json:
        print_json(_as_json(envelope, found, hit))
    else:
        _print(envelope, found, hit)
    raise typer.Exit(EXIT_FOUND if not found or any(one.problem for one in found) else 0)


async def _of_entry(cache: Cache, stream_id: str) -> Envelope:
    """Read an entry of any of the event streams."""
    if not _STREAM_ID.fullmatch(stream_id):
        raise ConfigurationError(f"--entry {stream_id!r} is no stream id, as in 1763748000000-0")
    reach_server(cache.settings)
    try:
        store = store_of(cache)
        for stream in cache.keys.streams(cache.settings.partitions):
            client = await store.client_for(stream.events)
            for _, found in await client.xrange(stream.events, stream_id, stream_id):
                return _decoded(stream.events, stream_id, found)
    finally:
        await cache.aclose()
    raise ConfigurationError(f"there is no entry {stream_id} in the event streams; it may have been trimmed")


def _decoded(stream: str, stream_id: str, fields: dict[bytes, bytes]) -> Envelope:
    return from_fields(stream, stream_id, fields, snapshot_reads=WorkerSettings.load().snapshot_reads)


def _fields(given: str) -> dict[bytes, bytes]:
    try:
        document = json.loads(text_given(given))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--fields is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"--fields is a JSON {type(document).__name__}, not an object")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in document.items()}
    try:
        return {name.encode(): value.encode() for name, value in texts.items()}
    except UnicodeEncodeError:
        raise ConfigurationError("--fields has what is no Unicode text") from None


def _print(envelope: Envelope, found: Sequence[Effect], hit: Sequence[Hit]) -> None:
    for line in _lines(envelope, found, hit):
        out.print(line, markup=False, soft_wrap=True)


def _lines(envelope: Envelope, found: Sequence[Effect], hit: Sequence[Hit]) -> Iterator[str]:
    yield f"{envelope.type} {json.dumps(dict(envelope.data), ensure_ascii=False)}"
    if not found:
        yield "  no rule is for it: nothing would be invalidated"
    for effect in found:
        yield ""
        yield f"{shown_path(effect.place.file)}:{effect.place.line} {_name(effect)}".rstrip()
        if effect.everything:
            yield "  invalidates  everything"
        yield from (f"  invalidates  namespace {name}" for name in effect.namespaces)
        yield from (f"  invalidates  tag {tag}" for tag in effect.tags)
        for warm in effect.warms:
            yield f"  warms        {warm.call}"
            yield f"               {warm.key}"
        yield from (f"  warms        the {hot.top} calls of {hot.namespace} that are read most" for hot in effect.hot)
        if effect.problem is not None:
            yield f"  fails        {effect.problem} ({_THEN[effect.again]})"
        elif not (effect.everything or effect.namespaces or effect.tags or effect.warms or effect.hot):
            yield "  asks for nothing"
    if hit:
        yield ""
        yield "cached functions with entries that it makes wrong"
        yield from (f"  {one.function}  by {', '.join(one.by)}" for one in hit)


def _name(effect: Effect) -> str:
    """Return what a rule is called, without its place, which is all that a rule of a file is called."""
    place = str(effect.place)
    return effect.rule.removesuffix(f"({place})").removesuffix(place)


def _as_json(envelope: Envelope, found: Sequence[Effect], hit: Sequence[Hit]) -> dict[str, Any]:
    return {
        "type": envelope.type,
        "id": envelope.id,
        "subject": envelope.subject,
        "data": dict(envelope.data),
        "ruled": bool(found),
        "rules": [_row(effect) for effect in found],
        "functions": [
            {"function": one.function, "file": shown_path(one.place.file), "line": one.place.line, "by": one.by}
            for one in hit
        ],
    }


def _row(effect: Effect) -> dict[str, Any]:
    return {
        "rule": effect.rule,
        "file": shown_path(effect.place.file),
        "line": effect.place.line,
        "everything": effect.everything,
        "namespaces": effect.namespaces,
        "tags": effect.tags,
        "warms": [{"call": warm.call, "key": warm.key} for warm in effect.warms],
        "hot": [{"namespace": hot.namespace, "top": hot.top} for hot in effect.hot],
        "problem": effect.problem,
        "again": effect.again,
    }
