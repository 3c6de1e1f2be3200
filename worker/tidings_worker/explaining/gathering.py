"""What the servers say of one entry, and of the events that its tokens name. Reads, and changes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from arq.constants import in_progress_key_prefix
from redis.exceptions import RedisError
from tidings import Envelope
from tidings.causes import Kind
from tidings.entries import Look, Looked
from tidings.errors import EventError, UnavailableError
from tidings.events import from_fields
from tidings.keys import ALL, namespace_token, tag_token
from tidings.layout import born_of, facts_of

from tidings_worker.failing import Failing, FailingWarms
from tidings_worker.rules import Rules

from .asking import Servers
from .calls_shown import call_shown
from .explanation import Explanation, Found, explain
from .history import Change, Log, changes_in, is_first, time_of
from .waiting import Backlog, Waiting, backlog, concerning

#: Entries of the log that are read at a time.
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """The entry that is asked about; `tags` as far as they are known without it."""

    namespace: str
    name: str
    tags: tuple[str, ...] = ()


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
    #: by stream id, the events that its changes name, as far as they are still there
    events: Mapping[str, Envelope]
    warm: WarmState | None
    backlog: Backlog
    #: events that wait and would make it wrong; None: no rules were given that could say
    concerning: Sequence[Waiting] | None


async def answer(servers: Servers, subject: Subject, call: str, rules: Rules | None) -> Answer:
    """Ask for everything. Raises UnavailableError, or what Redis raises."""
    # First the events: one that is applied meanwhile is then seen twice, where otherwise it would not be seen at all.
    behind = await backlog(servers)
    waiting = None if rules is None else await concerning(servers, rules, await _names(servers, subject))
    explanation = await explained(servers, subject)
    if not call and explanation.entry is not None:
        call = call_shown(servers.unsealed(explanation.entry.facts.call, subject.namespace, explanation.key))
    events = await events_of(servers, explanation.changes)
    return Answer(call, explanation, events, await warm_state(servers, subject), behind, waiting)


async def explained(servers: Servers, subject: Subject) -> Explanation:
    """Look at an entry, its tokens and the log, and say what it means.

    Raises UnavailableError, or what Redis raises.
    """
    store, keys = servers.store, servers.keys
    key, names = keys.entry(subject.namespace, subject.name), await _names(servers, subject)
    looked: Looked = await store.run(Look((key, *map(keys.token, names)), ttl=True, time=True))
    born = born_of(looked.entry)
    log = await _log(servers, names, key, since_us=0 if born is None else born.filled_us - born.load_us)
    lease = keys.lease(subject.namespace, subject.name)
    lease_ms = await servers.timely((await servers.holding(lease)).pttl(lease))
    return explain(Found(key, names, looked.entry, looked.tokens, looked.left_ms, looked.now_us, log, max(0, lease_ms)))


async def _names(servers: Servers, subject: Subject) -> tuple[str, ...]:
    """Return the names of the tokens that an entry depends on, by what is known and by what it says itself."""
    looked: Looked = await servers.store.run(Look((servers.keys.entry(subject.namespace, subject.name),)))
    facts = facts_of(looked.entry)
    tags = dict.fromkeys([*subject.tags, *(() if facts is None else facts.tags)])
    return (ALL, namespace_token(subject.namespace), *map(tag_token, tags))


async def _log(servers: Servers, names: Iterable[str], key: str, *, since_us: int) -> Log:
    """Read the log back to a time, or to its beginning."""
    log = servers.keys.log
    client = await servers.holding(log)
    changes: list[Change] = []
    last = "+"
    while page := await servers.timely(client.xrevrange(log, last, "-", count=_PAGE)):
        for _, fields in page:
            if time_of(fields) < since_us:
                return Log(tuple(changes), complete=True)
            changes += changes_in(fields, names, key)
            if is_first(fields):
                return Log(tuple(changes), complete=True)
        if len(page) < _PAGE:
            break
        last = f"({page[-1][0].decode()}"
    return Log(tuple(changes), complete=False)


async def events_of(servers: Servers, changes: Iterable[Change]) -> Mapping[str, Envelope]:
    """Return by stream id the events that these changes name, as far as the streams still have them."""
    wanted = {change.cause.stream_id for change in changes if change.cause.kind is Kind.EVENT} - {""}
    found: dict[str, Envelope] = {}
    for stream in servers.streams:
        client = await servers.holding(stream)
        for stream_id in wanted - found.keys():
            for _, fields in await servers.timely(client.xrange(stream, stream_id, stream_id)):
                try:
                    found[stream_id] = from_fields(stream, stream_id, fields)
                except EventError:
                    continue  # somebody has put another entry there
    return found


async def warm_state(servers: Servers, subject: Subject) -> WarmState | None:
    """Return what is queued for an entry; None when the server of the jobs does not say."""
    keys, jobs, name = servers.keys, servers.jobs, f"{subject.namespace}:{subject.name}"
    job = f"{keys.jobs}:{name}"
    try:
        due = await servers.timely(jobs.zscore(keys.jobs, job))
        running = await servers.timely(jobs.exists(f"{in_progress_key_prefix}{job}"))
        failing = await servers.timely(FailingWarms(jobs, keys.failing).read())
    except (RedisError, UnavailableError):
        return None
    return WarmState(None if due is None else due / 1000, bool(running), failing.get(name))
