"""How long a value lives, when it is loaded again early, and when a stale one may be served: decisions over numbers.

No I/O, no clock, no chance: times and random numbers are arguments. Durations are in milliseconds where the name ends
in `_ms`, times are the server's in microseconds where it ends in `_us`.

Two things end a value, and different options allow for each. It *expires*, by its ttl; or it is *invalidated*:

| the value is | it may be served | in place of a load that fails or is late |
| --- | --- | --- |
| expired | for `stale_while_revalidate` | for `stale_if_error` |
| invalidated | for `max_staleness` | for `stale_if_error` |
| both | if both of these allow it | if it does for the longer of the two times |

A limit that is reached is passed: at 0, the default, nothing stale is ever served.
"""

import math
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

from .errors import ConfigurationError

Seconds = float | timedelta
TtlWord = Literal["short", "default", "long"]

#: The age of which only this is known: that no limit allows it. More than any duration that `policy` accepts.
UNKNOWN_AGE_MS = 2**63 - 1

#: Ten years: a longer duration is a mistake, such as milliseconds or a time on the clock.
LONGEST_SECONDS = 10 * 365 * 86_400

_TTL_WORDS: tuple[str, ...] = get_args(TtlWord)
_OR_A_WORD = ', or "short", "default" or "long"'


@dataclass(frozen=True, slots=True)
class Policy:
    """The options of one cached function, checked; see the table in DESIGN 2."""

    #: None: what `ttl_word` means in the settings, else the namespace's, else the cache's default
    ttl_ms: int | None = None
    ttl_word: TtlWord | None = None
    #: fraction: the ttl becomes ttl ± jitter
    jitter: float = 0.0
    #: XFetch's beta; 0: off
    early: float = 0.0
    #: stale_while_revalidate
    swr_ms: int = 0
    stale_if_error_ms: int = 0
    max_staleness_ms: int = 0
    #: None: as for any other value
    negative_ttl_ms: int | None = None
    #: 0: no local tier
    local_ttl_ms: int = 0
    #: whether the local tier hands the same object to every caller although it could be changed
    local_shared: bool = False
    #: seconds; None: as long as the load takes
    timeout: float | None = None

    @property
    def grace_ms(self) -> int:
        """How long a value stays in Redis beyond its ttl."""
        return max(self.swr_ms, self.stale_if_error_ms)

    @property
    def may_be_old(self) -> bool:
        """Whether what is served may be older than the tokens in Redis are."""
        return self.local_ttl_ms > 0 or self.max_staleness_ms > 0 or self.grace_ms > 0

    @property
    def needs_ttl(self) -> bool:
        """Whether a read must ask how much of the ttl is left."""
        return self.early > 0 or self.grace_ms > 0 or self.local_ttl_ms > 0

    @property
    def needs_time(self) -> bool:
        """Whether a read must ask for the server's time: to tell how long ago a value was invalidated."""
        return self.max_staleness_ms > 0 or self.stale_if_error_ms > 0


def lifetime_ms(policy: Policy, default_ms: int, *, negative: bool, random: float) -> int:
    """Return the ttl to store a value with, at least 1; its grace comes on top.

    `default_ms` holds where the policy names no number, so it is what its `ttl_word` means; `negative` says that the
    value is None; `random`, from 0 to below 1, places it evenly between ttl - jitter and ttl + jitter.
    """
    ttl_ms = default_ms if policy.ttl_ms is None else policy.ttl_ms
    if negative and policy.negative_ttl_ms is not None:
        ttl_ms = policy.negative_ttl_ms
    return max(1, round(ttl_ms * (1 + policy.jitter * (2 * random - 1))))


def refresh_early(beta: float, load_ms: float, left_ms: float, random: float) -> bool:
    """Return whether this read should load again a value that still has `left_ms` above 0.

    XFetch: each read draws an exponentially distributed lead with a mean of beta times the duration of a load, and
    refreshes when the value would have ended by then, so with the probability exp(-left / (beta * load)). Of many
    readers, a few come first and the rest find the value replaced; nothing has to be agreed upon. Source: A. Vattani,
    F. Chierichetti, K. Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.

    `random` is above 0, at most 1: ``1 - random.random()``. Never with `beta` 0, or if the load takes no time.
    """
    return -math.log(random) * beta * load_ms >= left_ms


def expired_may_be_served(policy: Policy, expired_for_ms: int) -> bool:
    """Return whether a value whose ttl ended so long ago may be served while one refresh runs."""
    return expired_for_ms < policy.swr_ms


def stale_age_ms(now_us: int, seen_us: int | None, superseded_us: int | None) -> int:
    """Return for how long an invalidated value has been wrong: never less than the truth, so rounded up.

    `superseded_us` is when it was first invalidated after its load, where that is known exactly; what is known of a
    later invalidation does not do, since the value was wrong before it. Failing that, the time since its load began
    (`seen_us`), as it cannot have been wrong for longer than it has existed. Failing both, UNKNOWN_AGE_MS.

    The age is unknown, too, when one of them lies in the future: then the clock was set back, or is another server's
    since a failover, and cannot be asked how long ago anything was.
    """
    known = [stamp_us for stamp_us in (superseded_us, seen_us) if stamp_us is not None]
    if not known or max(known) > now_us:
        return UNKNOWN_AGE_MS
    return -((known[0] - now_us) // 1000)


def invalidated_may_be_served(policy: Policy, age_ms: int) -> bool:
    """Return whether a value invalidated so long ago (`stale_age_ms`) may be served while one refresh runs."""
    return age_ms < policy.max_staleness_ms


def may_cover_error(policy: Policy, age_ms: int) -> bool:
    """Return whether a value that ended so long ago may be served because its load has failed, or is late.

    It ended when it expired or was invalidated, whichever was first: of two ages the longer counts.
    """
    return age_ms < policy.stale_if_error_ms


def policy(
    *,
    where: str,
    ttl: Seconds | TtlWord | None = None,
    jitter: float = 0.0,
    early: float = 0.0,
    stale_while_revalidate: Seconds = 0,
    stale_if_error: Seconds = 0,
    max_staleness: Seconds = 0,
    negative_ttl: Seconds | None = None,
    local_ttl: Seconds = 0,
    local_shared: bool = False,
    timeout: Seconds | None = None,
) -> Policy:
    """Make a policy of what the user wrote; durations in seconds, as numbers or timedelta.

    Less than a millisecond counts as one, except for 0. Raises ConfigurationError, which names `where` and lists every
    problem: what is no value of its option, and what contradicts another option. How long the ttl of a word or of the
    settings is, is not known here.
    """
    check = _Check()
    word = ttl if isinstance(ttl, str) and ttl in _TTL_WORDS else None
    made = Policy(
        ttl_ms=None if ttl is None or word is not None else check.positive_ms("ttl", ttl, or_else=_OR_A_WORD),
        ttl_word=word,
        jitter=check.number("jitter", jitter, "a fraction from 0 to below 1", below=1),
        early=check.number("early", early, "a finite number of at least 0", below=sys.float_info.max),
        swr_ms=check.ms("stale_while_revalidate", stale_while_revalidate),
        stale_if_error_ms=check.ms("stale_if_error", stale_if_error),
        max_staleness_ms=check.ms("max_staleness", max_staleness),
        negative_ttl_ms=None if negative_ttl is None else check.positive_ms("negative_ttl", negative_ttl),
        local_ttl_ms=check.ms("local_ttl", local_ttl),
        local_shared=local_shared is True,
        timeout=None if timeout is None else check.positive_ms("timeout", timeout) / 1000,
    )
    if check.good("timeout", "stale_if_error") and made.timeout is not None and made.stale_if_error_ms == 0:
        check.problems["timeout, stale_if_error"] = (
            f"timeout={timeout!r} needs stale_if_error: without it nothing could be served when the time is up"
        )
    if check.good("local_ttl", "ttl") and made.ttl_ms is not None and made.local_ttl_ms > made.ttl_ms:
        check.problems["local_ttl, ttl"] = (
            f"local_ttl must not be longer than ttl: {local_ttl!r} is more than {ttl!r}, and would never be reached"
        )
    if local_shared not in {True, False} or (local_shared and not local_ttl):
        check.problems["local_shared"] = (
            f"local_shared must be True or False, and needs local_ttl, not {local_shared!r}"
        )
    if check.problems:
        lines = list(check.problems.values())
        raise ConfigurationError(f"{where}: {lines[0]}" if len(lines) == 1 else "\n  ".join((f"{where}:", *lines)))
    return made


class _Check:
    """Reads options one by one and notes what is wrong, by option; a wrong one counts as 0 from there on."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def good(self, *names: str) -> bool:
        """Return whether nothing is wrong with these options, each by itself."""
        return self.problems.keys().isdisjoint(names)

    def ms(self, name: str, value: object) -> int:
        """Return a duration from 0 in milliseconds."""
        seconds = _seconds(value)
        if seconds is None or not 0 <= seconds <= LONGEST_SECONDS:
            return self._refuse(name, value, "a number of seconds or a timedelta, from 0 to ten years")
        return max(1, round(seconds * 1000)) if seconds else 0

    def positive_ms(self, name: str, value: object, *, or_else: str = "") -> int:
        """Return a duration above 0 in milliseconds."""
        seconds = _seconds(value)
        if seconds is None or not 0 < seconds <= LONGEST_SECONDS:
            return self._refuse(name, value, f"a positive number of seconds or a timedelta, up to ten years{or_else}")
        return max(1, round(seconds * 1000))

    def number(self, name: str, value: object, wanted: str, *, below: float) -> float:
        """Return a number from 0."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
            return self._refuse(name, value, wanted)
        return float(value)

    def _refuse(self, name: str, value: object, wanted: str) -> int:
        self.problems[name] = f"{name} must be {wanted}, not {value!r}"
        return 0


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
