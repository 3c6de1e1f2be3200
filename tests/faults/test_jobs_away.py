"""The server of the jobs goes away, and the one of the events does not."""

import asyncio
import json
import time

RULES = """
from pathlib import Path

from tidings import cached
from tidings_worker import Invalidate, Rules, Warm

rules = Rules()


@cached(namespace="warmed", tags=["thing:{thing}"])
async def load(thing: int) -> int:
    with Path("loaded").open("a") as notes:
        notes.write(f"{thing}\\n")
    return thing


@rules.on("faults.changed")
def changed(event):
    yield Invalidate(tags=[f"thing:{event.thing}"])
    yield Warm(load, thing=event.thing)
"""


async def test_a_jobs_server_that_is_away_holds_up_no_invalidation_and_its_warms_come_later(
    new_world, new_server, url, client, recovered
):
    """Injected: the jobs' server is killed while events ask for warms, and started again on its port."""
    jobs = new_server()
    world = new_world(url, TIDINGS_JOBS_URL=f"redis://127.0.0.1:{jobs.port}")
    world._shell.write("rules.py", RULES)
    world.start_worker()
    await world.applied(await world.change(0), 10)
    jobs._process.kill()
    jobs._process.wait()
    for thing in range(1, 40):
        await world.applied(await world.change(thing), 10)
    assert world.workers[0].code is None
    assert (await world.explain(1)).warm is None
    new_server(port=jobs.port)
    began = time.monotonic()
    loaded = world._shell.folder / "loaded"
    while not loaded.exists() or {str(thing) for thing in range(1, 40)} - set(loaded.read_text().split()):
        assert time.monotonic() - began < 20, "the warms did not come"
        await asyncio.sleep(0.02)
    recovered(time.monotonic() - began)
    await world.settle(client)
    key = client.keys("cache:warmed:*")[0].decode()
    shown = world._shell.run("explain", key, "--json", TIDINGS_URL=world.url, **world.settings)
    assert (shown.code, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert told["entry"]["how"] == "warm"
    assert told["call"].startswith("rules:load(thing=")
    assert len(world.events("redis_away")) == len(world.events("redis_back")) == 1
