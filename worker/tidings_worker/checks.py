"""What is wrong with the servers' settings, said at the start in one line each. Nothing here stops the worker.

Events, dead letters, the invalidation log and the queue of warms have no expiry; entries, tokens and the warm jobs
themselves have one. So what an eviction policy may take depends on which of these it looks at.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from .telemetry import log

#: ``PEXPIRE ... GT`` (every fill) and the counts of entries read and added (lost events) came with it; Valkey is above.
OLDEST_VERSION = (7, 0)

#: Entries expire sooner than warm jobs, and those sooner than tokens.
_CURE = "set noeviction, or volatile-ttl, which takes cached entries first"

#: What is asked of CONFIG GET; INFO, which managed services permit more often, tells the rest.
_CONFIGURED = ("save", "appendfsync")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an operator should know; `code` is part of the interface, `text` is for people."""

    code: str
    text: str


async def check(client: Redis, *, events: bool = True, jobs: bool = True) -> list[Finding]:
    """Ask a server for its settings and return what is wrong with them for what it holds.

    `events`: streams and cache are there; `jobs`: the queue of warms is. What the server refuses to tell is a finding,
    too. Raises RedisError when it does not answer.
    """
    pipe = client.pipeline(transaction=False)
    pipe.info("all")
    for name in _CONFIGURED:
        pipe.config_get(name)
    told, *configured = await pipe.execute(raise_on_error=False)
    for reply in (told, *configured):
        if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
            raise reply
    info = None if isinstance(told, ResponseError) else told
    refused = any(isinstance(reply, ResponseError) for reply in configured)
    config = None if refused else {name: value for reply in configured for name, value in reply.items()}
    return findings(config, info, events=events, jobs=jobs)


def report(server: str, found: list[Finding]) -> None:
    """Log each finding; `server` is its URL as `settings.redact` leaves it."""
    for finding in found:
        log.warning("server_setting", server=server, code=finding.code, text=finding.text)


def findings(
    config: Mapping[str, str] | None, info: Mapping[str, Any] | None, *, events: bool = True, jobs: bool = True
) -> list[Finding]:
    """Return what is wrong with settings, as CONFIG GET and INFO tell them; None: the server does not. Pure."""
    found = []
    if info is None:
        found.append(
            Finding("info_refused", "INFO is refused: version, role, memory and eviction, and the AOF are not checked")
        )
    if config is None:
        found.append(Finding("config_refused", "CONFIG GET is refused: save and appendfsync are not checked"))
    info = info or {}
    found += _version(info)
    found += _role(info, jobs=jobs)
    found += _memory(info, events=events, jobs=jobs)
    return found + _persistence(config, info, events=events)


def _version(info: Mapping[str, Any]) -> list[Finding]:
    told = str(info.get("redis_version", ""))
    number = re.match(r"(\d+)\.(\d+)", told)
    if number is None or (int(number[1]), int(number[2])) >= OLDEST_VERSION:
        return []
    oldest = ".".join(map(str, OLDEST_VERSION))
    return [
        Finding("version", f"version {told}: tidings needs {oldest} or newer, or Valkey; groups and fills will fail")
    ]


def _role(info: Mapping[str, Any], *, jobs: bool) -> list[Finding]:
    found = []
    if info.get("role") == "slave":
        fate = "takes no writes" if _number(info, "slave_read_only", 1) else "forgets what is written to it at a resync"
        found.append(Finding("replica", f"this is a replica, which {fate}: name the primary, or sentinels"))
    if jobs and _number(info, "cluster_enabled"):
        text = "warm jobs cannot live on a cluster: set TIDINGS_JOBS_URL to a server of its own"
        found.append(Finding("jobs_on_cluster", text))
    return found


def _memory(info: Mapping[str, Any], *, events: bool, jobs: bool) -> list[Finding]:
    limit, used = _number(info, "maxmemory"), _number(info, "used_memory")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if not limit:
        return []
    found = []
    if policy.startswith("allkeys-"):
        kept = ["unread events", "dead letters", "the invalidation log"] if events else []
        kept += ["queued warms"] if jobs else []
        text = f"maxmemory-policy {policy} may evict {', '.join(kept)}: {_CURE}"
        found.append(Finding("evicts_everything", text))
    elif policy.startswith("volatile-") and policy != "volatile-ttl" and jobs:
        text = f"maxmemory-policy {policy} may evict queued warms, which are then never run, but no events: {_CURE}"
        found.append(Finding("evicts_jobs", text))
    if used >= limit:
        fate = "writes are refused" if policy == "noeviction" else "it evicts all the time"
        text = f"{_megabytes(used)} are in use of maxmemory {_megabytes(limit)}: {fate}; raise maxmemory"
        found.append(Finding("memory_full", text))
    return found


def _persistence(config: Mapping[str, str] | None, info: Mapping[str, Any], *, events: bool) -> list[Finding]:
    lost = "events and dead letters" if events else "queued warms"
    found = []
    appends = _number(info, "aof_enabled", -1)
    if appends == 0:
        if config is None or "save" not in config:
            text = f"appendonly is off: a crash of the server loses {lost} since its last snapshot, if it makes any"
            found.append(Finding("snapshots_only", text))
        elif config["save"]:
            text = f"appendonly is off: a crash of the server loses {lost} since its last snapshot; set appendonly yes"
            found.append(Finding("snapshots_only", text))
        else:
            text = f"nothing is written to disk: a restart of the server loses all {lost}; set appendonly yes"
            found.append(Finding("not_persistent", text))
    if appends == 1 and config is not None and config.get("appendfsync") == "no":
        text = f"appendfsync no: a power failure loses {lost} of about 30 seconds; set everysec or always"
        found.append(Finding("fsync_seldom", text))
    if config is not None and config.get("save") and info.get("rdb_last_bgsave_status", "ok") != "ok":
        text = "the last snapshot failed, and the server may refuse writes until one succeeds: look at its disk"
        found.append(Finding("snapshots_failing", text))
    if appends == 1 and info.get("aof_last_write_status", "ok") != "ok":
        found.append(Finding("aof_failing", "the server cannot write its AOF and refuses writes: look at its disk"))
    return found


def _number(info: Mapping[str, Any], name: str, default: int = 0) -> int:
    try:
        return int(info.get(name, default))
    except (TypeError, ValueError):  # servers that only resemble Redis tell some things in their own way
        return default


def _megabytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
