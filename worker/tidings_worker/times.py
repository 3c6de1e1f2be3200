"""Times as people type them and read them: ``10m``, RFC 3339, stream ids; ``3.2 s``, ``5 min``. Pure.

A stream's ids are times by the server's clock, so a moment is a bound among the ids. `now` is that clock's too: an age
that is counted from another clock is off by what lies between the two.
"""

import re
from datetime import UTC, datetime, timedelta

from tidings.errors import ConfigurationError

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)
_AGO = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
#: A bare number is the first half of an id only if it has as many digits as a time: 600 could be meant as seconds.
_MILLISECONDS = re.compile(r"0|\d{12,20}", re.ASCII)

#: The greatest number that either half of an id can have.
_MOST = (1 << 64) - 1


def parse_since(text: str, now: datetime) -> str:
    """Return the least stream id, ``ms-seq``, that is not before a time.

    The time is so long ago (``10m``, ``1h30m``, ``2d``; units ms, s, m, h, d, w), a date and time as RFC 3339 has them
    (in UTC where no offset is given), or an id, whose second half may be left out. Raises ConfigurationError.
    """
    return _bound(text, now, sequence=0)


def parse_until(text: str, now: datetime) -> str:
    """Return the greatest stream id, ``ms-seq``, that is not after a time; see `parse_since`."""
    return _bound(text, now, sequence=_MOST)


def _bound(text: str, now: datetime, *, sequence: int) -> str:
    given = text.strip()
    if (found := _ID.fullmatch(given)) is not None:
        milliseconds, sequence = map(int, found.groups())
    elif _MILLISECONDS.fullmatch(given):
        milliseconds = int(given)
    else:
        milliseconds = _milliseconds(_moment(given, now))
    if milliseconds > _MOST or sequence > _MOST:
        raise ConfigurationError(f"{given!r}: no stream has ids so large")
    return f"{milliseconds}-{sequence}"


def _moment(given: str, now: datetime) -> datetime:
    try:
        if _AGO.fullmatch(given):
            return now - timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(given)))
        if given.isascii() and not given.isdigit():
            moment = datetime.fromisoformat(given.upper())  # RFC 3339 allows t and z
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        return datetime.fromtimestamp(0, UTC)  # longer ago than there have been streams
    except ValueError:
        pass
    raise ConfigurationError(
        f"{given!r:.60} is no time: write how long ago (10m, 2h, 1d), a time (2026-11-21T10:00Z), or a stream id"
    )


def _milliseconds(moment: datetime) -> int:
    """Return the milliseconds since 1970, rounded down; 0 for what was before."""
    return max(0, (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1))


def moment_of(stream_id: str) -> datetime | None:
    """Return the time in a stream id; None for an id made by hand that is no time."""
    try:
        return datetime.fromtimestamp(int(stream_id.partition("-")[0]) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def age(seconds: float) -> str:
    """Return so many seconds as people read them: ``3.2 s``, ``45 s``, ``5 min``, ``3 h``, ``12 d``; none below 0."""
    seconds = max(0.0, seconds)
    if seconds < 10:  # noqa: PLR2004 seconds below this have a decimal; all are rounded down
        return f"{int(seconds * 10) / 10} s"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds // 86_400:.0f} d"
