"""What a URL names: the clients of redis-py that a store is built on.

``redis://``, ``rediss://`` (TLS) and ``unix://`` are redis-py's, with its options behind the ``?``.

``redis+sentinel://[user:password@]host:port[,host:port...]/service[/db][?options]`` (``rediss+sentinel://``: TLS, to
sentinels and servers alike) names sentinels, which know the primary; each new connection asks them where it is, so that
after a failover the next one leads there. User and password are the servers'. Its options are ``protocol`` (2 or 3),
``client_name``, and ``sentinel_username`` and ``sentinel_password`` for sentinels that want their own; with TLS also
``ssl_ca_certs``, ``ssl_cert_reqs``, ``ssl_certfile`` and ``ssl_keyfile``.

``redis+cluster://[user:password@]host:port[,host:port...][?options]`` (``rediss+cluster://``: TLS) names some nodes of
a Redis Cluster, of which one that answers knows the others; see `cluster`. User and password are those of every node.
Its options are ``protocol`` and ``client_name``, and the same four with TLS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .errors import ConfigurationError
from .settings import Settings, redact

#: Seconds that a blocking read may ask the server to wait.
LONGEST_BLOCK = 1.0

_ESCAPES = "special characters in user and password are written as / %2F, ? %3F, # %23, @ %40"

#: What redis-py would take from the URL, against what is built on it here.
_REFUSED_OPTIONS = {
    "decode_responses": "tidings reads bytes; leave it out",
    "socket_timeout": "set operation_timeout (TIDINGS_OPERATION_TIMEOUT) in its place",
    "health_check_interval": "a connection that was closed is noticed without it; leave it out",
    "max_connections": "an event loop has one or two, and threads have as many as are in Redis at once; leave it out",
    "retry_on_timeout": "a command that was sent is never sent again by itself; leave it out",
}

_CLUSTER_OPTIONS = {"protocol", "client_name"}
_SENTINEL_OPTIONS = _CLUSTER_OPTIONS | {"sentinel_username", "sentinel_password"}
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"}

#: A sentinel that does not answer must leave time to ask the others, and to connect.
_SENTINEL_SHARE = 0.25

_Client = TypeVar("_Client", redis.Redis, redis.asyncio.Redis)


@dataclass(frozen=True, slots=True)
class Servers(Generic[_Client]):
    """Clients that connect when they are first used."""

    #: how errors name the server
    where: str
    client: _Client
    #: for reads that block up to LONGEST_BLOCK
    blocking: _Client
    #: to be closed with the others
    sentinels: tuple[_Client, ...] = ()


def async_servers(settings: Settings) -> Servers[redis.asyncio.Redis]:
    """Make clients for one event loop, without timeouts on their sockets: see `RedisStore`.

    Raises ConfigurationError for a URL that cannot be meant.
    """
    return _servers(
        settings, redis.asyncio.Redis, redis.asyncio.sentinel.Sentinel, redis.asyncio.retry.Retry(NoBackoff(), 0), None
    )


def sync_servers(settings: Settings) -> Servers[redis.Redis]:
    """Make clients for threads. Raises ConfigurationError for a URL that cannot be meant."""
    retry = redis.retry.Retry(NoBackoff(), 0)
    return _servers(settings, redis.Redis, redis.sentinel.Sentinel, retry, settings.operation_timeout)


def is_cluster(settings: Settings) -> bool:
    """Say whether the URL names a Redis Cluster. Nothing is checked."""
    return settings.url is not None and "+cluster://" in settings.url.get_secret_value()


@dataclass(frozen=True, slots=True)
class Nodes:
    """Some nodes of a cluster, and how clients of any of its nodes are made."""

    #: how errors name the cluster
    where: str
    #: host and port of those that the URL names
    named: tuple[tuple[str, int], ...]
    _settings: Settings
    _options: dict[str, Any]

    def async_servers(self, host: str, port: int) -> Servers[redis.asyncio.Redis]:
        """Make clients of one node for one event loop; see the function of this name."""
        return self._of(host, port, redis.asyncio.Redis, redis.asyncio.retry.Retry(NoBackoff(), 0), None)

    def sync_servers(self, host: str, port: int) -> Servers[redis.Redis]:
        """Make clients of one node for threads."""
        retry = redis.retry.Retry(NoBackoff(), 0)
        return self._of(host, port, redis.Redis, retry, self._settings.operation_timeout)

    def _of(
        self, host: str, port: int, kind: type[_Client], retry: Any, socket_timeout: float | None
    ) -> Servers[_Client]:
        common = {"socket_connect_timeout": self._settings.operation_timeout, "retry": retry, **self._options}
        client, blocking = (
            kind(host=host, port=port, socket_timeout=timeout, **common)
            for timeout in (socket_timeout, _patient(socket_timeout))
        )
        return Servers(f"{self.where} (node {host}:{port})", client, blocking)


def cluster_nodes(settings: Settings) -> Nodes:
    """Return what a cluster's URL names. Raises ConfigurationError for one that cannot be meant."""
    url = settings.url.get_secret_value() if settings.url is not None else ""
    _check(url)
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options: dict[str, Any] = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    options |= {"username": unquote(user) or None, "password": unquote(password) or None}
    if parts.scheme == "rediss+cluster":
        options["ssl"] = True
    nodes = Nodes(redact(url), tuple(_address(host, 6379) for host in hosts.split(",")), settings, options)
    try:  # as in `_servers`
        pool = nodes.sync_servers(*nodes.named[0]).client.connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, RedisError):
        raise _invalid_options(url) from None
    return nodes


def _patient(socket_timeout: float | None) -> float | None:
    """Return the timeout of a client for blocking reads: one below BLOCK would raise while all is well."""
    return None if socket_timeout is None else socket_timeout + LONGEST_BLOCK


def _invalid_options(url: str) -> ConfigurationError:
    return ConfigurationError(
        f"the URL {redact(url)} is not valid: redis-py does not take one of the options behind its '?'"
    )


def _servers(
    settings: Settings, kind: type[_Client], sentinel: Callable[..., Any], retry: Any, socket_timeout: float | None
) -> Servers[_Client]:
    """`retry` is never: newer versions of redis-py send a command again, and an XADD would add two events."""
    url = settings.url.get_secret_value() if settings.url is not None else ""
    _check(url)
    if is_cluster(settings):
        raise ConfigurationError(f"the URL {redact(url)} names a cluster where one server, or sentinels, are wanted")
    patient = _patient(socket_timeout)
    common = {"socket_connect_timeout": settings.operation_timeout, "retry": retry}
    try:
        if "+sentinel://" in url:
            servers = _behind_sentinels(url, kind, sentinel, common, (socket_timeout, patient))
        else:
            client, blocking = (kind.from_url(url, socket_timeout=t, **common) for t in (socket_timeout, patient))
            servers = Servers(redact(url), client, blocking)
        pool = servers.client.connection_pool
        # Not connected, only made: otherwise the first command would find out about options that redis-py lacks.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, RedisError):
        raise _invalid_options(url) from None
    return servers


def _behind_sentinels(
    url: str, kind: type[_Client], sentinel: Callable[..., Any], common: dict[str, Any], timeouts: tuple[Any, Any]
) -> Servers[_Client]:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    own = {"username": options.pop("sentinel_username", None), "password": options.pop("sentinel_password", None)}
    shared: dict[str, Any] = {name: options.pop(name) for name in _TLS_OPTIONS & options.keys()}
    if parts.scheme == "rediss+sentinel":
        shared["ssl"] = True
    own = {**common, **shared, **own, "socket_timeout": common["socket_connect_timeout"] * _SENTINEL_SHARE}
    own["socket_connect_timeout"] = own["socket_timeout"]
    servers = {**common, **shared, **options, "db": int(database or 0)}
    servers |= {"username": unquote(user) or None, "password": unquote(password) or None}
    asked = sentinel([_address(host, 26379) for host in hosts.split(",")], sentinel_kwargs=own)
    client, blocking = (
        asked.master_for(unquote(service), redis_class=kind, socket_timeout=timeout, **servers) for timeout in timeouts
    )
    return Servers(redact(url), client, blocking, tuple(asked.sentinels))


def _address(host: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "", parts.port or default_port


def _check(url: str) -> None:
    """Raise ConfigurationError for a URL that cannot be meant, without repeating what may be a password."""
    scheme, _, _ = url.partition("://")
    base, _, several = scheme.partition("+")
    if several not in {"", "sentinel", "cluster"} or base not in {"redis", "rediss"} | (set() if several else {"unix"}):
        raise ConfigurationError(
            "the URL does not start with redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or memory://"
        )
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",") if several else []
        for address in [urlsplit(f"//{host}") for host in hosts] or [parts]:
            _ = address.port
            (address.hostname or "").encode("idna")
            if several and not address.hostname:
                raise ValueError  # noqa: TRY301 handled with the rest
    except ValueError:
        raise ConfigurationError(f"the URL has no valid host and port; {_ESCAPES}") from None
    if "@" in parts.path + parts.query + parts.fragment:
        raise ConfigurationError(f"the URL has an @ behind its host; {_ESCAPES}")
    options = parse_qs(parts.query, keep_blank_values=True)
    for option in options.keys() & _REFUSED_OPTIONS.keys():
        raise ConfigurationError(f"the URL {redact(url)} has the option {option}: {_REFUSED_OPTIONS[option]}")
    if not set(options.get("protocol", ())) <= {"2", "3"}:
        raise ConfigurationError(f"the URL {redact(url)}: protocol must be 2 or 3")
    if scheme in {"redis", "rediss"} and not (parts.path.strip("/") or "0").isdecimal():
        raise ConfigurationError(f"the URL {redact(url)} ends with what is no database number")
    if several:
        _check_several(url, parts.path, options.keys() - (_TLS_OPTIONS if base == "rediss" else set()), several)


def _check_several(url: str, path: str, options: set[str], kind: str) -> None:
    service, _, database = path.strip("/").partition("/")
    if kind == "cluster":
        if (service or "0") != "0" or database:
            raise ConfigurationError(f"the URL {redact(url)} names a database; a cluster has none but 0")
        known, with_them = _CLUSTER_OPTIONS, "with a cluster"
    else:
        if not service or not (database or "0").isdecimal():
            raise ConfigurationError(f"the URL {redact(url)} does not end with /service or /service/database number")
        known, with_them = _SENTINEL_OPTIONS, "with sentinels"
    if unknown := sorted(options - known):
        raise ConfigurationError(
            f"the URL {redact(url)} has the option {unknown[0]}; {with_them} it may be one of "
            f"{', '.join(sorted(known))}, and with rediss+{kind}:// {', '.join(sorted(_TLS_OPTIONS))}"
        )
