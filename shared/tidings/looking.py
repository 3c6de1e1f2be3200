"""One look at an entry, sans I/O: what is read, what it means, and what is noted about it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .codec import Codec
from .counting import AGE_SAMPLE
from .entries import Look, Looked
from .errors import DecodeError, UnavailableError
from .fence import Verdict, hit, judge, uniques
from .filling import Filling
from .layout import UNIQUE_LENGTH, Born, born_of, facts_of, header_tokens
from .sealing import SEALED, Sealer
from .seen import NOTHING, AwayError, Seen
from .settings import Settings
from .steps import Ask, Steps
from .targets import Request, Target

#: A load that took less than this last time is not worth the round trip of asking who else loads.
LEASE_WORTH_US = 2000


class Looking:
    """What a driver sees in Redis; `filling` puts into the local tier, `note` says where that is."""

    def __init__(
        self,
        settings: Settings,
        filling: Filling,
        *,
        sealer: Sealer,
        note: Callable[[], int | None],
        clock: Callable[[], float],
    ) -> None:
        self.filling = filling
        self._sealer = sealer
        self._note = note
        self.clock = clock
        self._bulk_bytes = settings.bulk_bytes
        self._until_sample = AGE_SAMPLE

    def hit(self, wanted: Target, codec: Codec[Any], values: Sequence[bytes | None]) -> Any:
        """Return the value of a plain target whose entry and tokens were read, or a Looked, for `read` to go on with.

        The shortest way to a hit there is: everything that is not one is left to `read`.
        """
        entry, tokens = values[0], values[1:]
        if entry is None:
            return Looked(None, list(tokens))
        known, header = wanted.header  # as a whole: another thread may bring older ones meanwhile
        if tokens == known and entry.startswith(header):  # what was decided then holds for these bytes as well
            start = len(header)
        else:
            start = hit(entry, uniques(tokens))
            if not 0 < start < len(entry):
                return Looked(entry, list(tokens))
            wanted.header = tokens, entry[:start]
        try:
            value = codec.decode(entry, start)
        except DecodeError:  # or sealed: `read` unseals
            return Looked(entry, list(tokens))
        counts = wanted.counts
        counts.hits += 1
        size = len(entry) - start  # not in the line that counts: see `Counts`
        counts.bytes_read += size
        self._until_sample -= 1
        if self._until_sample <= 0:
            self.sample_age(wanted, entry)
        return value

    def see(self, request: Request, looked: Looked | None, noted: int | None) -> Steps[Seen]:
        """Look, unless it has been `looked` under `noted`, and judge. Raises AwayError."""
        wanted, look = request.target, request.target.look  # another reader may learn other tags meanwhile
        if looked is None:
            noted = self.note(wanted)
            looked = yield from ask(wanted, Ask(look, wanted.bulk))
        if request.result_tags is not None:
            looked = yield from self._with_result_tags(wanted, look, looked)
        seen = self.judge(request, looked, noted)
        if seen.fresh and noted is not None:
            self._keep(wanted, seen, noted)
        return seen

    def peek(self, request: Request, default: Any) -> Steps[Any]:
        """Return the entry's value, or `default` where there is none. Its own facts name its tags. Raises AwayError."""
        wanted = request.target
        looked: Looked = yield from ask(wanted, Ask(Look(wanted.keys)))
        facts = facts_of(looked.entry)
        if facts is not None and facts.tags:
            wanted.know(facts.tags)
            looked = yield from ask(wanted, Ask(wanted.look))
        seen = self.judge(request, looked)
        self.count(request, seen)
        return seen.value if seen.fresh else default

    def is_fresh(self, request: Request) -> Steps[bool]:
        """Say whether a read would be served from the cache now. Raises AwayError."""
        return (yield from self.see(request, None, None)).fresh

    def judge(self, request: Request, looked: Looked, noted: int | None = None) -> Seen:
        """Decide what a look means; see `fence.judge`. Never raises: what does not decode is no value."""
        wanted = request.target
        sighting = judge(wanted.key, looked.entry, looked.tokens, looked.left_ms)
        if len(looked.tokens) != len(wanted.names):
            # A fill learns the tokens of result tags when it comes: a load goes by the others alone.
            own = judge(wanted.key, looked.entry, looked.tokens[: len(wanted.names)])
            sighting = replace(sighting, ticket=own.ticket, missing=own.missing)
        policy = wanted.call.policy
        useful = sighting.verdict is Verdict.FRESH or policy.max_staleness_ms or policy.grace_ms
        value, payload = NOTHING, b""
        if sighting.payload is not None and useful:
            value, payload = self.decoded(request, sighting.payload)
            wanted.bulk = len(sighting.payload) >= self._bulk_bytes
        return Seen(sighting, looked, noted, value, payload, self.clock())

    def decoded(self, request: Request, stored: bytes) -> tuple[Any, bytes]:
        """Return the value and the codec's bytes of what is stored, or (NOTHING, b"") for what does not decode."""
        wanted = request.target
        try:
            if stored[:1] in SEALED or self._sealer.encrypts(wanted.call.namespace):
                stored = self._sealer.unseal(stored, wanted.call.namespace, wanted.key)
            return request.codec.decode(stored), stored
        except DecodeError:
            wanted.counts.undecodable += 1
            return NOTHING, b""

    def count(self, request: Request, seen: Seen) -> str:
        """Count what a look has found, and say as what."""
        counts, sighting = request.target.counts, seen.sighting
        if seen.fresh:
            counts.hits += 1
            size = len(sighting.payload or b"")  # not in the line that counts: see `Counts`
            counts.bytes_read += size
            self._until_sample -= 1
            if self._until_sample <= 0:
                self.sample_age(request.target, seen.looked.entry or b"")
            return "hits"
        if sighting.verdict is Verdict.INVALIDATED:
            counts.invalidated += 1
            return "invalidated"
        counts.misses += 1
        return "misses"

    def sample_age(self, wanted: Target, entry: bytes) -> None:
        """Note the age of a hit; of how many, `_until_sample` counts."""
        self._until_sample = AGE_SAMPLE
        if (born := born_of(entry)) is not None:
            wanted.counts.age_s.add(round(time.time() - born.filled_us / 1e6))

    def note(self, wanted: Target) -> int | None:
        """Note the position of the local tier, before anything is read or loaded."""
        return self._note() if wanted.call.policy.local_ttl_ms else None

    def _keep(self, wanted: Target, seen: Seen, noted: int) -> None:
        """Put what was found in Redis into the local tier, for as long as Redis keeps it at most.

        Under the tags that the entry itself names: what the target knows may be of another thread's load.
        """
        looked, born, facts = seen.looked, seen.sighting.born, facts_of(seen.looked.entry)
        if looked.left_ms is not None and born is not None and facts is not None:
            left_ms = min(looked.left_ms - born.grace_ms, wanted.call.policy.local_ttl_ms)
            own = facts.tags[len(wanted.tags) :]
            self.filling.keep(wanted, noted, seen.value, seen.payload, ttl_ms=left_ms, tags=own)

    def _with_result_tags(self, wanted: Target, look: Look, looked: Looked) -> Steps[Looked]:
        """Look again when the entry has other tags than it had last time; a third time is left to chance: a miss."""
        for _ in range(2):
            current = tuple((token or b"")[:UNIQUE_LENGTH] for token in looked.tokens)
            if looked.entry is None or header_tokens(looked.entry) == current:
                break
            facts = facts_of(looked.entry)
            wanted.know(() if facts is None else facts.tags)
            if wanted.look is look:
                break
            look = wanted.look
            looked = yield from ask(wanted, Ask(look, wanted.bulk))
        return looked


def ask(wanted: Target, step: Ask) -> Steps[Any]:
    """Ask on behalf of a read. Raises AwayError when Redis does not answer, and counts it."""
    try:
        return (yield step)
    except UnavailableError as error:
        wanted.counts.errors += 1
        raise AwayError from error


def is_quick(born: Born | None) -> bool:
    """Say whether what was found, valid or not, took so little to load that the next load is not worth a lease."""
    return born is not None and born.load_us < LEASE_WORTH_US
