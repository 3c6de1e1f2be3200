"""What servers call their histories of writes, on real servers: what changes it, and what does not."""

import redis
from tidings import Cache
from tidings_worker.servers import histories

#: A replica is fed at once, and not when others may have come too.
QUICK = {"repl-diskless-sync-delay": "0"}


async def seen(port):
    async with Cache(f"redis://127.0.0.1:{port}") as cache:
        found, complete = await histories(cache.reader().store)
    assert complete
    return found


async def test_the_first_replica_of_a_server_is_no_new_history(new_server, until):
    primary, replica = new_server(**QUICK), new_server(**QUICK)
    before = await seen(primary.port)
    with redis.Redis(port=primary.port) as there, redis.Redis(port=replica.port) as client:
        named = there.info("replication")["master_replid"]
        client.replicaof("127.0.0.1", primary.port)
        until(lambda: client.info("replication")["master_link_status"] == "up", "the replica", timeout=20)
        assert there.info("replication")["master_replid"] != named, "the server names its history anew"
    assert await seen(primary.port) == before


async def test_a_replica_that_takes_over_has_another_history_than_its_primary(new_server, until):
    primary, replica = new_server(**QUICK), new_server(**QUICK)
    with redis.Redis(port=replica.port) as client:
        client.replicaof("127.0.0.1", primary.port)
        until(lambda: client.info("replication")["master_link_status"] == "up", "the replica", timeout=20)
        client.replicaof("NO", "ONE")
    assert await seen(replica.port) != await seen(primary.port)


async def test_a_server_that_was_relieved_and_took_over_again_has_another_history(new_server, until):
    first, second = new_server(**QUICK), new_server(**QUICK)
    before = await seen(first.port)
    for follower, leader in ((second, first), (first, second)):
        with redis.Redis(port=follower.port) as client:
            client.replicaof("127.0.0.1", leader.port)
            until(lambda: client.info("replication")["master_link_status"] == "up", "the replica", timeout=20)
            client.replicaof("NO", "ONE")
    assert await seen(first.port) != before


async def test_a_server_that_was_started_again_has_another_history(new_server):
    server = new_server()
    before = await seen(server.port)
    server._process.kill()
    server._process.wait()
    assert await seen(new_server(port=server.port).port) != before
