"""One entry that a warm job is to fill."""

import time
from dataclasses import replace
from typing import Any

from tidings.errors import DecodeError, UnavailableError
from tidings.filling import Stored

from .calls import decode_call, load_of, resolve
from .plans import Warm

#: A warm whose entry is invalidated while it loads, loads again; this often, then it is up to the next reader or event.
_LOADS_AT_MOST = 3


class Entry:
    """The entry that a job is to fill. Raises NotLoadedError or ConfigurationError, DecodeError, ArgumentError."""

    def __init__(self, identity: Any, arguments: Any) -> None:
        if not (isinstance(identity, str) and isinstance(arguments, str)):
            raise DecodeError(f"{identity!r:.100}: a warm is the name of a function and a text of arguments")
        function = resolve(identity)
        args, kwargs = decode_call(function, arguments)
        self.warm = Warm(function, *args, **kwargs)
        load = load_of(function, args, kwargs)
        self._request = replace(function.request(load, *args, **kwargs), how="warm")
        self._reader = function.cache.reader()
        self._lives = self._reader.reading.filling.ttl_ms(self._request.target, ...) / 1000
        self._fresh_at = 0.0

    async def is_fresh(self) -> bool:
        """Say whether the entry is fresh now. Raises UnavailableError."""
        return await self._reader.is_fresh(self._request)

    async def fill(self, *, renew: bool) -> Stored:
        """Load until the entry is fresh; return FRESH, or why it is not. With `renew`, load at least once.

        Raises what the load raises, and UnavailableError when Redis does not take the value.
        """
        stored = Stored.REFUSED
        for _ in range(_LOADS_AT_MOST):
            stored = await self._reader.ensure(self._request, renew=renew)
            if stored is Stored.UNAVAILABLE:
                raise UnavailableError("Redis did not take the value")
            if stored is Stored.TOO_LARGE:
                return stored
            if stored is Stored.FRESH or (stored is Stored.STORED and await self.is_fresh()):
                self._fresh_at = time.monotonic()
                return Stored.FRESH
            renew = False
        return Stored.REFUSED

    async def was_overtaken(self) -> bool:
        """Say whether the entry has been invalidated since `fill` left it fresh.

        An entry that may have expired by itself has not: one that lives for milliseconds would be warmed for ever.
        """
        if time.monotonic() - self._fresh_at > self._lives / 2:
            return False
        try:
            return not await self.is_fresh()
        except UnavailableError:
            return True  # nobody knows: a warm too many finds a fresh entry, one too few leaves a cold one
