"""What the worker says at its start about the server's settings."""

from uuid import uuid4

import pytest
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs
from tidings_worker.checks import Finding, check, findings, report
from tidings_worker.embedded import EmbeddedServer

#: a server as it should be
INFO = {
    "redis_version": "7.2.4",
    "role": "master",
    "maxmemory": 100,
    "used_memory": 50,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "cluster_enabled": 0,
}
CONFIG = {"save": "", "appendfsync": "everysec"}


def codes(found):
    return [finding.code for finding in found]


def url_of(server):
    return f"redis://127.0.0.1:{server.port}"


async def codes_of(url, **what):
    async with redis.asyncio.Redis.from_url(url) as client:
        return codes(await check(client, **what))


def test_a_server_as_it_should_be_has_no_findings():
    assert findings(CONFIG, INFO) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"redis_version": "6.2.14"}, "version"),
        ({"redis_version": "5.0.3"}, "version"),
        ({"maxmemory_policy": "allkeys-lru"}, "evicts_everything"),
        ({"maxmemory_policy": "volatile-random"}, "evicts_jobs"),
        ({"used_memory": 100}, "memory_full"),
        ({"aof_enabled": 0}, "not_persistent"),
        ({"aof_last_write_status": "err"}, "aof_failing"),
        ({"role": "slave"}, "replica"),
        ({"role": "slave", "slave_read_only": 0}, "replica"),
        ({"cluster_enabled": 1}, "jobs_on_cluster"),
    ],
    ids=str,
)
def test_each_mistake_is_one_finding(changes, code):
    assert codes(findings(CONFIG, INFO | changes)) == [code]


@pytest.mark.parametrize(
    ("config", "info", "code"),
    [
        ({"save": "3600 1"}, {"aof_enabled": 0}, "snapshots_only"),
        ({"save": ""}, {"aof_enabled": 0}, "not_persistent"),
        ({"save": "3600 1"}, {"rdb_last_bgsave_status": "err"}, "snapshots_failing"),
        ({"appendfsync": "no"}, {}, "fsync_seldom"),
    ],
)
def test_what_is_written_to_disk_and_when(config, info, code):
    assert codes(findings(CONFIG | config, INFO | info)) == [code]


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "8.8.1", "10.0.0", "255.255.255", "", "unstable"])
def test_newer_and_unknown_versions_are_let_be(version):
    assert findings(CONFIG, INFO | {"redis_version": version}) == []


def test_a_policy_without_a_limit_evicts_nothing():
    assert findings(CONFIG, INFO | {"maxmemory": 0, "maxmemory_policy": "allkeys-lru"}) == []


def test_what_is_at_risk_depends_on_what_the_server_holds():
    evicting = INFO | {"maxmemory_policy": "allkeys-lfu"}
    (both,) = findings(CONFIG, evicting)
    (events,) = findings(CONFIG, evicting, jobs=False)
    (jobs,) = findings(CONFIG, evicting, events=False)
    assert "unread events" in both.text
    assert "queued warms" in both.text
    assert "queued warms" not in events.text
    assert "unread events" not in jobs.text
    assert findings(CONFIG, INFO | {"maxmemory_policy": "volatile-lru"}, jobs=False) == []
    assert findings(CONFIG, INFO | {"maxmemory_policy": "volatile-ttl"}) == []
    assert findings(CONFIG, INFO | {"cluster_enabled": 1}, jobs=False) == []


def test_what_the_server_does_not_tell_is_one_line_each():
    assert codes(findings(None, INFO)) == ["config_refused"]
    assert codes(findings(CONFIG, None)) == ["info_refused"]
    assert codes(findings(None, None)) == ["info_refused", "config_refused"]
    assert codes(findings(None, INFO | {"aof_enabled": 0})) == ["config_refused", "snapshots_only"]


def test_a_server_that_only_resembles_redis_raises_nothing():
    assert findings({}, {}) == []
    assert codes(findings({}, INFO | {"aof_enabled": 0})) == ["snapshots_only"]
    odd = dict.fromkeys(INFO, "odd")
    assert findings({"save": "odd"}, odd) == []


def test_every_finding_is_one_line_that_fits_a_log():
    bad = {"redis_version": "6.0.0", "role": "slave", "cluster_enabled": 1, "used_memory": 200, "aof_enabled": 0}
    for policy in ("allkeys-lru", "volatile-lru"):
        for finding in findings(None, INFO | bad | {"maxmemory_policy": policy}) + findings(None, None):
            assert "\n" not in finding.text
            assert len(finding.text) < 250


async def test_a_real_server_is_asked(new_server):
    assert await codes_of(url_of(new_server(appendonly="yes"))) == []


async def test_a_real_server_with_the_usual_mistakes(new_server):
    server = new_server(appendonly="no", save="", maxmemory="200mb")
    with redis.Redis.from_url(url_of(server)) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert await codes_of(url_of(server)) == ["evicts_everything", "not_persistent"]


async def test_a_real_server_that_is_full(new_server):
    server = new_server(appendonly="yes", maxmemory="200mb")
    with redis.Redis.from_url(url_of(server)) as client:
        client.config_set("maxmemory", "1")
    assert await codes_of(url_of(server)) == ["memory_full"]


async def test_a_user_who_may_not_ask_is_told_what_was_not_checked(new_server):
    server = new_server(appendonly="yes")
    with redis.Redis.from_url(url_of(server)) as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"], commands=["-config"]
        )
    url = f"redis://app:secret@127.0.0.1:{server.port}"
    assert await codes_of(url) == ["config_refused"]
    with redis.Redis.from_url(url_of(server)) as client:
        client.execute_command("ACL", "SETUSER", "app", "-info")
    assert await codes_of(url) == ["info_refused", "config_refused"]


async def test_a_replica_is_told(new_server):
    primary, replica = new_server(appendonly="yes"), new_server(appendonly="yes")
    with redis.Redis.from_url(url_of(replica)) as client:
        client.replicaof("127.0.0.1", primary.port)
    assert await codes_of(url_of(replica)) == ["replica"]


async def test_the_newer_protocol_says_the_same(new_server):
    assert await codes_of(f"{url_of(new_server(appendonly='no', save=''))}?protocol=3") == ["not_persistent"]


async def test_a_server_that_does_not_answer_is_an_error():
    with pytest.raises(RedisConnectionError):
        await codes_of("redis://127.0.0.1:1")


async def test_the_development_server_is_durable_itself(shell):
    with EmbeddedServer(shell.folder) as server:
        assert await codes_of(server.url) == []


def test_findings_are_warnings_with_the_server_s_name():
    with capture_logs() as logs:
        report("redis://cache:6379", [Finding("replica", "this is a replica")])
    assert logs == [
        {
            "event": "server_setting",
            "log_level": "warning",
            "server": "redis://cache:6379",
            "code": "replica",
            "text": "this is a replica",
        }
    ]


@pytest.mark.parametrize(
    ("policy", "events", "jobs"),
    [("volatile-ttl", True, True), ("volatile-lru", True, False), ("allkeys-lru", False, False)],
)
def test_what_the_findings_say_of_policies_is_so(new_server, policy, events, jobs):
    """A full server: what has no expiry, what has a long one, and then many entries with a short one."""
    server = new_server(maxmemory="20mb", save="")
    with redis.Redis.from_url(url_of(server)) as client:
        client.config_set("maxmemory-policy", policy)
        for number in range(100):
            client.xadd(f"events:{number}", {"type": "x"})
            client.set(f"arq:job:{number}", "job", px=86_400_000)
        for _ in range(30):
            with client.pipeline(transaction=False) as pipe:
                for _ in range(1000):
                    pipe.set(f"cache:{uuid4()}", b"x" * 1000, px=3_600_000)
                pipe.execute()
        kept = tuple(len(client.keys(f"{kind}:*")) == 100 for kind in ("events", "arq:job"))
        assert kept == (events, jobs)
