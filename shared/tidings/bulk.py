"""Many keys at once, sans I/O: one round trip for all that is there, one call of the loader for all that is missing."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .entries import Look, Looked, Opened
from .errors import UnavailableError
from .fence import judge
from .filling import Lead
from .layout import LINEAGE_START, VACANT, facts_of, unique
from .operations import Batch
from .reading import MOST_WAITS, Reading
from .seen import NOTHING, AwayError
from .steps import Ask, Fly, Follow, Steps, Wait
from .targets import Request

_Load = Callable[[Sequence[int]], Steps[Mapping[int, Any]]]


def peek_many(reading: Reading, requests: Sequence[Request], default: Any) -> Steps[list[Any]]:
    """Return each entry's value, or `default`; see `Reading.peek`. Two exchanges at most. Raises AwayError."""
    found = yield from _look(requests, [Look(request.target.keys) for request in requests])
    tagged: list[int] = []
    for index, (request, looked) in enumerate(zip(requests, found, strict=True)):
        facts = facts_of(looked.entry)
        if facts is not None and facts.tags:
            request.target.know(facts.tags)
            tagged.append(index)
    if tagged:
        again = yield from _look(requests, [requests[index].target.look for index in tagged])
        for index, looked in zip(tagged, again, strict=True):
            found[index] = looked
    values: list[Any] = []
    for request, looked in zip(requests, found, strict=True):
        seen = reading.judge(request, looked)
        reading.count(request, seen)
        values.append(seen.value if seen.fresh else default)
    return values


def read_many(reading: Reading, requests: Sequence[Request], load: _Load) -> Steps[list[Any]]:
    """Return each entry's value; `load`, given the indices that are missing, gives a mapping of them to values.

    What it leaves out is NOTHING and not kept. An entry that another process loads, or this one in another call, is
    not loaded with the others but waited for afterwards; what is still missing then is loaded in one more call. When
    Redis goes away in the middle, what is missing then is loaded too, and not kept. Raises what the load raises.
    """
    values: list[Any] = [NOTHING] * len(requests)
    missing: Sequence[int] = range(len(requests))
    try:
        for waits in range(MOST_WAITS + 1):
            missing, absent = yield from _take_fresh(reading, requests, missing, values, first=waits == 0)
            if not missing:
                break
            leads, held = yield from _open(reading, requests, missing, absent, last=waits == MOST_WAITS)
            missing = list(held)
            if leads:
                # A flight of its own, which only has this caller: cancelling that does not cancel the load.
                loaded, _ = yield Fly(("many", unique()), partial(_load, reading, requests, leads, load))
                for index, value in loaded.items():
                    values[index] = value
            asked_at = reading.clock()
            for index, opened in held.items():  # one after the other, but each no longer than its own lease
                target, passed_ms = requests[index].target, round((reading.clock() - asked_at) * 1000)
                left_ms = min(opened.left_ms, reading.filling.lease_ms) - passed_ms
                if not opened.leads and left_ms > 0:
                    yield Wait(target.key, target.places.wakes, opened.position, left_ms)
    except AwayError:
        for index in missing:
            requests[index].target.counts.direct += 1
        if missing:
            with requests[missing[0]].target.counts.loading():
                loaded = yield from load(missing)
            for index, value in loaded.items():
                values[index] = value
    return values


def _take_fresh(
    reading: Reading, requests: Sequence[Request], missing: Sequence[int], values: list[Any], *, first: bool
) -> Steps[tuple[list[int], set[int]]]:
    """Look; put what is fresh into `values`; return what is missing still, and of that what has no value at all."""
    found = yield from _look(requests, [requests[index].target.look for index in missing])
    left: list[int] = []
    absent: set[int] = set()
    for index, looked in zip(missing, found, strict=True):
        seen = reading.judge(requests[index], looked)
        if first:
            reading.count(requests[index], seen)
        if seen.fresh:
            values[index] = seen.value
        else:
            left.append(index)
            if seen.sighting.born is None:
                absent.add(index)
    return left, absent


def _look(requests: Sequence[Request], looks: list[Look]) -> Steps[list[Looked]]:
    try:
        found: list[Looked] = yield Ask(Batch(looks))
    except UnavailableError as error:
        for request in requests:
            request.target.counts.errors += 1
        raise AwayError from error
    return found


def _open(
    reading: Reading, requests: Sequence[Request], missing: Sequence[int], absent: set[int], *, last: bool
) -> Steps[tuple[dict[int, Lead], dict[int, Opened]]]:
    """Ask for the lease on each; return those that are ours to load, all in the `last` round, and the others.

    The others are to be looked at again: somebody loads them, or they were `absent` and have been filled since. Where
    Redis keeps no tokens there is nothing to load under: AwayError.
    """
    openings = [reading.filling.opening(requests[index].target, leased=True) for index in missing]
    try:
        answers: list[Opened] = yield Ask(Batch(openings))
    except UnavailableError as error:
        raise AwayError from error
    leads: dict[int, Lead] = {}
    held: dict[int, Opened] = {}
    filled: dict[int, Lead] = {}
    for index, opening, opened in zip(missing, openings, answers, strict=True):
        ticket = judge(requests[index].target.key, opened.head, opened.tokens).ticket
        if ticket is None or opening.lease is None:
            raise AwayError
        lead = Lead(ticket, opening.lease.owner if opened.leads else b"", opened.now_us)
        if index in absent and opened.head[:LINEAGE_START] != VACANT and not last:
            held[index], filled[index] = replace(opened, leads=True), lead
        elif opened.leads or last:
            leads[index] = lead
        else:
            held[index] = opened
    if filled:
        yield Follow(_release(reading, requests, filled))
    return leads, held


def _load(
    reading: Reading,
    requests: Sequence[Request],
    leads: Mapping[int, Lead],
    load: _Load,
) -> Steps[Mapping[int, Any]]:
    started = time.perf_counter()
    counts = requests[0].target.counts
    counts.loads += 1
    try:
        loaded = yield from load(list(leads))
        payloads = {index: requests[index].codec.encode(value) for index, value in loaded.items()}
    except GeneratorExit:
        raise
    except BaseException:
        counts.load_errors += 1
        yield Follow(_release(reading, requests, leads))
        raise
    load_us = round((time.perf_counter() - started) * 1e6)
    counts.load_us.add(load_us)
    encoded = {index: (value, payloads[index]) for index, value in loaded.items()}
    yield Follow(_fill(reading, requests, leads, encoded, load_us))
    return loaded


def _fill(
    reading: Reading,
    requests: Sequence[Request],
    leads: Mapping[int, Lead],
    loaded: Mapping[int, tuple[Any, bytes]],
    load_us: int,
) -> Steps[None]:
    filling, fills = reading.filling, []
    for index, (value, payload) in loaded.items():
        request, target = requests[index], requests[index].target
        fill = filling.fill(request, leads[index], payload, load_us=load_us, ttl_ms=filling.ttl_ms(target, value))
        if fill is not None:
            fills.append((target, fill))
    filled = {target.key for target, _ in fills}
    yield from _release(
        reading, requests, {i: lead for i, lead in leads.items() if requests[i].target.key not in filled}
    )
    if not fills:
        return
    try:
        answers: list[bool] = yield Ask(Batch([fill for _, fill in fills]), any(target.bulk for target, _ in fills))
    except UnavailableError:
        requests[0].target.counts.errors += 1
        return
    for (target, fill), stored in zip(fills, answers, strict=True):
        filling.count(target, fill, stored=stored)


def _release(reading: Reading, requests: Sequence[Request], leads: Mapping[int, Lead]) -> Steps[None]:
    for index, lead in leads.items():
        if lead.owner:
            yield from reading.filling.release(requests[index].target, lead.owner)
