"""The server's clock, which gives streams their ids."""

from datetime import UTC, datetime

from .exchange import Store


async def server_now(store: Store, key: str) -> datetime:
    """Return the time by the clock of the server that has a key. Raises UnavailableError."""
    (reply,) = await store.transact(key, [("TIME",)])
    seconds, microseconds = map(int, reply)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
