"""SIGHUP: a worker reads its rules files again, and uses them if all of them are valid; nothing wrong ends it."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs
from tidings import Cache, Event, Settings
from tidings.errors import ConfigurationError
from tidings_worker import Rules, Warm
from tidings_worker.jobs import jobs_pool
from tidings_worker.loading import RulesTargets
from tidings_worker.metrics import Metrics
from tidings_worker.reloading import Reloading
from tidings_worker.schedules import Schedule
from tidings_worker.settings import WorkerSettings
from tidings_worker.warming import WarmWorker

MODULE = """
import time
from pathlib import Path

from tidings import cached
from tidings_worker import Rules

rules = Rules()
rules.map("reload.of_module", tags=["module"])


@cached(namespace="reload")
async def load(user_id: int) -> int:
    with Path("loaded").open("a") as notes:
        notes.write(f"{user_id}\\n")
    return user_id
"""


def tags(which):
    return f'[[rule]]\non = "reload.changed"\ntags = ["{which}:{{user_id}}"]\n'


@pytest.fixture
def start(shell, url):
    """Start a worker of these targets; `rules.toml` is there."""
    shell.write("reload_rules.py", MODULE)
    shell.write("rules.toml", tags("old"))

    def start(*targets):
        worker = shell.start("worker", *targets, TIDINGS_URL=url, TIDINGS_WORKER_BLOCK_MS="100")
        worker.event("worker_started")
        return worker

    return start


@pytest.fixture
def reload(shell, until):
    """Write `rules.toml`, send the signal, and wait for what the worker says about it."""

    def reload(worker, text, outcome="rules_reloaded"):
        if text is None:
            (shell.folder / "rules.toml").unlink()
        else:
            shell.write("rules.toml", text)
        before = len(worker.events(outcome))
        worker.send(signal.SIGHUP)
        return until(lambda: worker.events(outcome)[before:], f"{outcome} in {worker.err}")[0]

    return reload


@pytest.fixture
def apply(client, url):
    """Publish an event and wait until it is applied; give the tags that it invalidated."""
    count = iter(range(1, 1000))
    with Cache(url).sync as cache:

        def apply(event_type="reload.changed"):
            event = Event.of(event_type, {"user_id": next(count)})
            cache.publish(event).applied(10)
            names = [key.decode() for key in client.keys("token:tag:*")]
            client.delete("token:none", *names)
            return {name.split(":")[2] for name in names}

        yield apply


def every_second(user_id):
    warm = f'{{ call = "reload_rules:load", with = {{ user_id = {user_id} }} }}'
    return f"[[schedule]]\nwarm = {warm}\nsecond = {list(range(60))}\n"


def test_what_is_valid_is_used_and_what_is_not_is_refused(start, reload, apply, shell, until):
    """One worker through everything that may happen to its file."""

    def loaded(user_id):
        notes = shell.folder / "loaded"
        return notes.read_text().split().count(str(user_id)) if notes.exists() else 0

    shell.write("rules.toml", tags("old") + every_second(1))
    worker = start("rules.toml", "reload_rules:rules")
    assert apply() == {"old"}

    refused = reload(worker, tags("new").replace("tags", "tagz"), "rules_rejected")
    assert refused["problems"] == ["rules.toml:3:1: unknown key 'tagz'; did you mean 'tags'?"]
    assert apply() == {"old"}

    assert "not TOML" in reload(worker, tags("new")[:-5], "rules_rejected")["problems"][0]  # half-written
    assert "cannot be read" in reload(worker, None, "rules_rejected")["problems"][0]
    assert "nothing in it" in reload(worker, "", "rules_rejected")["problems"][0]
    assert apply() == {"old"}
    until(lambda: loaded(1), "the schedule of the start")

    done = reload(worker, tags("new") + '[[rule]]\non = "reload.more"\ntags = ["more"]\n' + every_second(2))
    known = loaded(1)
    assert (done["added"], done["removed"], done["rules"], done["schedules"]) == (["reload.more"], [], 3, 1)
    assert done["not_read_again"] == ["reload_rules:rules"]
    assert apply() == {"new"}
    assert apply("reload.more") == {"more"}
    assert apply("reload.of_module") == {"module"}
    until(lambda: loaded(2), "the new schedule")
    assert loaded(1) <= known + 2, "what was queued already, a second ahead"

    assert reload(worker, tags("newest"))["removed"] == ["reload.more"]
    assert apply("reload.more") == set()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_signals_while_it_starts_are_one_reload_and_while_it_stops_nothing(shell, url, until):
    shell.write(
        "reload_slow.py",
        f"from pathlib import Path\nPath('importing').touch()\n{MODULE}\n"
        "while not Path('go').exists():\n    time.sleep(0.01)\n",
    )
    shell.write("rules.toml", tags("old"))
    worker = shell.start("worker", "reload_slow:rules", "rules.toml", TIDINGS_URL=url, TIDINGS_WORKER_BLOCK_MS="100")
    until((shell.folder / "importing").exists, "the import")
    for _ in range(3):
        worker.send(signal.SIGHUP)
    (shell.folder / "go").touch()
    worker.event("rules_reloaded")
    worker.send(signal.SIGTERM)
    while worker.code is None:
        worker.send(signal.SIGHUP)
        time.sleep(0.002)  # so that it has time for other things
    assert worker.wait() == 0
    assert len(worker.events("rules_reloaded")) == 1


#: Makes its standard input the terminal of a session of its own, and becomes the program that it is given.
IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Terminal:
    """A worker in a terminal of its own."""

    def __init__(self, how, folder, environment):
        self._log = folder / f"log.{how}"
        self._end, inside = pty.openpty()
        command = [sys.executable, "-c", IN_A_TERMINAL, how]
        command += [sys.executable, "-m", "tidings_worker", "worker", "rules.toml"]
        with self._log.open("wb") as log:
            self.worker = subprocess.Popen(command, stdin=inside, stdout=log, stderr=log, cwd=folder, env=environment)
        os.close(inside)

    def said(self, event):
        return f'"{event}"' in self._log.read_text()

    def close(self):
        if self._end is not None:
            os.close(self._end)
            self._end = None

    def end(self):
        self.worker.kill()
        self.worker.wait(10)
        self.close()


@pytest.fixture
def start_in_terminal(shell, url):
    """Start a worker in a terminal."""
    shell.write("rules.toml", tags("old"))
    environment = {**shell.environment, "TIDINGS_URL": url, "TIDINGS_WORKER_BLOCK_MS": "100"}
    started = []

    def start(how):
        started.append(Terminal(how, shell.folder, environment))
        return started[-1]

    yield start
    for terminal in started:
        terminal.end()


def test_a_worker_whose_terminal_is_closed_ends_unless_it_was_told_not_to(start_in_terminal, until):
    """Plainly, it has been hung up in earnest: nobody is there any more to stop it."""
    plain, nohup = start_in_terminal("plain"), start_in_terminal("nohup")
    for terminal in (plain, nohup):
        until(lambda: terminal.said("worker_started"), "the start")  # noqa: B023 called at once
        terminal.close()
    until(lambda: nohup.said("rules_reloaded"), "the reload")
    nohup.worker.send_signal(signal.SIGTERM)
    for terminal in (plain, nohup):
        assert terminal.worker.wait(10) == 0
    assert not plain.said("rules_reloaded")


# The parts by themselves


async def test_a_schedule_that_stays_is_due_when_it_was_due(url):
    pool = jobs_pool(Settings(url=url))
    kept, other = (Schedule(Warm.hot("reload"), None, None, None, None, minute, 0) for minute in (1, {1, 2}))
    worker = WarmWorker(pool, "warms", [kept], WorkerSettings())
    (job,) = worker._worker.cron_jobs
    job.next_run = due = datetime(2026, 11, 21, 12, 1, tzinfo=UTC)
    worker.use([other, kept, kept])
    assert [job.next_run for job in worker._worker.cron_jobs] == [None, due]
    assert {job.name for job in worker._worker.cron_jobs} <= set(worker._worker.functions)
    await pool.aclose()


@pytest.fixture
def reloading(tmp_path, monkeypatch):
    """A part whose file is `rules.toml` here, and what it takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.toml").write_text(tags("old"))
    targets, taken = RulesTargets("rules.toml"), []
    made = Reloading(targets, asyncio.Event(), targets.load(), taken.append, Metrics())
    made.taken = taken
    return made


async def test_without_a_file_the_signal_says_that_modules_stay(reloading):
    reloading._targets = RulesTargets("reload_rules:rules")
    with capture_logs() as logs:
        await reloading.reload()
    (said,) = logs
    assert (said["event"], said["modules"]) == ("rules_not_reloaded", ["reload_rules:rules"])
    assert reloading.taken == []


async def test_rules_that_a_part_refuses_are_rejected(tmp_path, monkeypatch, reloading):
    def refuse(_rules):
        raise ConfigurationError("not these")

    metrics = Metrics()
    targets = RulesTargets("rules.toml")
    await Reloading(targets, asyncio.Event(), targets.load(), refuse, metrics).reload()
    assert b"tidings_rules_rejected_total 1.0" in metrics.expose()[0]


async def test_whatever_goes_wrong_is_a_rejection(reloading, monkeypatch):
    def fail(_self):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(RulesTargets, "load", fail)
    await reloading.reload()
    assert reloading.taken == []


async def test_a_stop_does_not_wait_for_a_reload_that_hangs(reloading, monkeypatch, eventually):
    begun, go = [], asyncio.Event()

    async def hang(*_):
        begun.append(1)
        await go.wait()

    monkeypatch.setattr(asyncio, "to_thread", hang)
    stop = asyncio.Event()
    part = asyncio.create_task(reloading.run(stop))
    reloading._asked.set()
    await eventually(lambda: begun, "the reload")
    stop.set()
    await asyncio.wait_for(part, 5)
    go.set()
    assert reloading.taken == []


def test_new_types_keep_their_names_among_the_labels():
    metrics = Metrics(["reload.first"])
    metrics.rules_changed(["reload.second"])
    metrics.applied({f"reload.{number}": 1 for number in range(200)} | {"reload.second": 1}, {})
    assert b'tidings_events_applied_total{type="reload.second"} 1.0' in metrics.expose()[0]


async def test_rules_that_change_amid_a_batch_are_for_the_next(new_parts, cache, client):
    """The batch is invalidated by the old ones already when the others come, and is not planned again."""
    old, new = Rules(), Rules()
    old.map("reload.pair", tags=["old:{n}"], warm=[Warm.hot("reload")])
    new.map("reload.pair", tags=["new:{n}"])

    class Warmer:
        async def hand_off(self, _warms, _hot, *, carriers):
            parts.handler.use(new)

    parts = await new_parts(old, warmer=Warmer())
    for numbers in ((1, 2), (3, 4)):
        for number in numbers:
            await cache.publish(Event.of("reload.pair", {"n": number}))
        await parts.handler.handle(parts.group, await parts.group.read(10, 20))
    tags = {key.decode().removeprefix("token:tag:") for key in client.keys("token:tag:*")}
    assert tags == {"old:1", "old:2", "new:3", "new:4"}
