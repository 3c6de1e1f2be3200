"""What the servers say of one entry, and of the events that its tokens name. Reads, and changes nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from arq.constants import in_progress_key_prefix
from redis.exceptions import RedisError
from tidings import Envelope
from tidings.causes import Kind, id_shown
from tidings.entries import Look, Looked
from tidings.errors import EventError, UnavailableError
from tidings.events import from_fields
from tidings.keys import ALL, namespace_token, tag_token
from tidings.layout import facts_of

from tidings_worker.failing import Failing, FailingWarms
from tidings_worker.rules import Rules

from .asking import Servers
from .calls_shown import call_shown
from .explanation import Explanation, Found, explain
from .history import Change, Log, changes_in, is_first, time_of
from .subjects import Subject
from .waiting import Backlog, Waiting, backlog, concerning, unapplied

#: Entries of the log that are read at a time: each of these replies has a timeout.
_PAGE = 500

#: Events that are asked for at a time.
_EVENTS = 1000

#: Looks at an entry whose tags change meanwhile.
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class WarmState:
    """What the queue of warms has for an entry. Times are seconds since 1970."""

    #: when the job is due; None: none is queued
    queued_for: float | None
    running: bool
    failing: Failing | None


@dataclass(frozen=True, slots=True)
class Answer:
    """All that is known of an entry."""

    #: the function and its arguments as people write them; empty where only the key is known
    call: str
    explanation: Explanation
    #: by the id in their causes, the events that its changes name, as far as they are still there
    events: Mapping[str, Envelope]
    warm: WarmState | None
    backlog: Backlog
    #: events that wait and would make it wrong; None: no rules were given that could say
    concerning: Sequence[Waiting] | None


async def answer(servers: Servers, subject: Subject, call: str, rules: Rules | None) -> Answer:
    """Ask for everything. Raises UnavailableError, or what Redis raises."""
    # First the events: one that is applied meanwhile is then seen twice, where otherwise it would not be seen at all.
    behind = await backlog(servers)
    seen = None if rules is None else await unapplied(servers)
    explanation = await explained(servers, subject)
    waiting = None if rules is None or seen is None else concerning(seen, rules, [t.name for t in explanation.tokens])
    if not call and explanation.entry is not None:
        call = call_shown(servers.unsealed(explanation.entry.facts.call, subject.namespace, explanation.key))
    events = await events_of(servers, explanation.changes)
    return Answer(call, explanation, events, await warm_state(servers, subject), behind, waiting)


async def explained(servers: Servers, subject: Subject) -> Explanation:
    """Look at an entry, its tokens and the log, and say what it means.

    Raises UnavailableError, or what Redis raises.
    """
    keys = servers.keys
    key = keys.entry(subject.namespace, subject.name)
    names, looked = await _look(servers, subject, key)
    log = await _log(servers, names, key)
    lease = keys.lease(subject.namespace, subject.name)
    lease_ms = await servers.timely((await servers.holding(lease)).pttl(lease))
    facts = facts_of(looked.entry)
    return explain(
        Found(
            key,
            names,
            looked.entry,
            looked.tokens,
            looked.left_ms,
            looked.now_us,
            log,
            max(0, lease_ms),
            subject.policy,
            subject.bypassed,
            retagged=facts is not None and subject.retagged(facts.tags),
            unreadable="" if looked.entry is None or facts is None else servers.unreadable(looked.entry, subject, key),
        )
    )


async def _look(servers: Servers, subject: Subject, key: str) -> tuple[tuple[str, ...], Looked]:
    """Look at an entry and its tokens, whose names only it knows; again where it has been replaced by one of others."""
    names = _names(subject, None)
    for _ in range(_LOOKS):
        look = Look((key, *map(servers.keys.token, names)), ttl=True, time=True)
        looked: Looked = await servers.store.run(look)
        if (now := _names(subject, looked.entry)) == names:
            return names, looked
        names = now
    raise UnavailableError(f"{key} was replaced by an entry of other tags each time it was looked at")


def _names(subject: Subject, entry: bytes | None) -> tuple[str, ...]:
    """Return the names of the tokens that an entry says it depends on, and of those that its function asks for."""
    facts = facts_of(entry)
    tags = dict.fromkeys([*(() if facts is None else facts.tags), *subject.tags])
    return (ALL, namespace_token(subject.namespace), *map(tag_token, tags))


async def _log(servers: Servers, names: Iterable[str], key: str) -> Log:
    """Read the whole log: what was invalidated by its name is found nowhere else."""
    log = servers.keys.log
    client = await servers.holding(log)
    changes: list[Change] = []
    begins_us: int | None = None
    last = "+"
    while page := await servers.timely(client.xrevrange(log, last, "-", count=_PAGE)):
        for _, fields in page:
            changes += changes_in(fields, names, key)
            begins_us = 0 if is_first(fields) else time_of(fields) or begins_us
        last = f"({page[-1][0].decode()}"
    return Log(tuple(changes), begins_us)


async def events_of(servers: Servers, changes: Iterable[Change]) -> Mapping[str, Envelope]:
    """Return by the id in their causes the events that these changes name, as far as the streams still have them.

    Two partitions can have entries of one stream id, so only the event's own id says which of them is meant.
    """
    causes = [change.cause for change in changes if change.cause.kind is Kind.EVENT and change.cause.stream_id]
    named = {cause.event_id for cause in causes}
    wanted = sorted({cause.stream_id for cause in causes})
    found: dict[str, Envelope] = {}
    for stream in servers.streams:
        client = await servers.holding(stream)
        for start in range(0, len(wanted), _EVENTS):
            pipe = client.pipeline(transaction=False)
            for stream_id in wanted[start : start + _EVENTS]:
                pipe.xrange(stream, stream_id, stream_id)
            for entries in await servers.timely(pipe.execute()):
                found |= {id_shown(event.id): event for event in _decoded(stream, entries)}
    return {event_id: event for event_id, event in found.items() if event_id in named}


def _decoded(stream: str, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> Iterator[Envelope]:
    for entry_id, fields in entries:
        try:
            yield from_fields(stream, entry_id.decode(), fields)
        except EventError:
            continue  # somebody has put another entry there


async def warm_state(servers: Servers, subject: Subject) -> WarmState | None:
    """Return what is queued for an entry; None when the server of the jobs does not say, or is not known."""
    keys, jobs, name = servers.keys, servers.jobs, f"{subject.namespace}:{subject.name}"
    job = f"{keys.jobs}:{name}"
    if jobs is None:
        return None
    try:
        due = await servers.timely(jobs.zscore(keys.jobs, job))
        running = await servers.timely(jobs.exists(f"{in_progress_key_prefix}{job}"))
        failing = await servers.timely(FailingWarms(jobs, keys.failing).read())
    except (RedisError, UnavailableError):
        return None
    return WarmState(None if due is None else due / 1000, bool(running), failing.get(name))
