"""Which calls of a namespace are read most, as far as this worker can make warms of them."""

import asyncio
import time
from collections.abc import Callable
from itertools import islice

from tidings import Cache
from tidings.calls import decode_call
from tidings.errors import TidingsError
from tidings.hot import CALLS_KEPT, hottest, parsed, window_at
from tidings.operations import Batch, ReadCalls

from .calls import resolve
from .plans import Hot, Warm

#: Calls that are made into warms before the event loop may turn to something else.
_AT_A_TIME = 50


async def warms_of(hot: Hot, cache: Cache, clock: Callable[[], float] = time.time) -> list[Warm]:
    """Return warms of the calls that were read most lately, first the most read. Raises UnavailableError.

    Anybody may have written to the sorted sets: what is no call of a function that this worker has loaded, of this very
    namespace, is left out.
    """
    window, over = window_at(clock())
    keys = [cache.keys.hot(hot.namespace, number) for number in (window, window - 1)]
    current, before = await cache.reader().ask(Batch([ReadCalls(key, CALLS_KEPT) for key in keys]))
    members = iter(hottest(current, before, over))
    warms: dict[str, Warm] = {}
    while len(warms) < hot.top and (some := list(islice(members, _AT_A_TIME))):
        for warm in map(_warm, some):
            if warm is not None and warm.cached_function.options.namespace == hot.namespace:
                warms.setdefault(warm.name, warm)
        await asyncio.sleep(0)
    return list(warms.values())[: hot.top]


def _warm(member: bytes) -> Warm | None:
    try:
        identity, arguments = parsed(member)
        function = resolve(identity)
        args, kwargs = decode_call(function, arguments)
        return Warm(function, *args, **kwargs)
    except TidingsError:
        return None  # of another version of the service, or hostile
