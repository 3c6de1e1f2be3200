"""The command line as a user meets it: real processes, exit codes, one message for each mistake.

Nearly all the time that a short command takes is imports, so that most run in processes forked from one that has
imported already. Where many are to be tried, they run once for the module, each under a prefix of its own; the tests
look at what is left.
"""

import json
import os
import signal
import sys
from functools import partial

import pytest
import redis
from forked_commands import Forks
from tidings import Cache
from tidings.reporting import WINDOW_SECONDS, window_at

RULES = """
from tidings import Event
from tidings_worker import Rules

class UserUpdated(Event, type="user.updated"):
    user_id: int

rules = Rules()
rules.map(UserUpdated, tags=["user:{user_id}"])
other = "no rules"
"""

BAD_RULES = {
    "no_rules": "x = 1\n",
    "bad_syntax": "def f(:\n",
    "raises": "import os\n\nvalue = int('seven')\n",
    "lacks": "import a_module_that_is_not_there\n",
    "leaves": "import sys\nsys.exit('over')\n",
    "bad_template": RULES + "rules.map(UserUpdated, tags=['user:{name}'])\n",
    "duplicate": RULES + "class Again(Event, type='user.updated'):\n    user_id: int\n",
    "bad_cached": RULES + "from tidings import cached\n@cached(tags=['user:{user}'])\nasync def f(user_id: int): ...\n",
    "bad_warm": RULES
    + """
from tidings import cached
from tidings_worker import Warm

def make():
    @cached()
    async def inner(user_id: int): ...
    return inner

rules.schedule(Warm(make(), 7), minute=0)
""",
    "unbound": RULES
    + """
from tidings import cached
from tidings_worker import Warm

@cached()
async def get_user(user_id: int): ...

rules.schedule(Warm(get_user), minute=0)
""",
}


class CleanForks(Forks):
    """Runs many commands, each under a prefix of its own."""

    def run_all(self, server, commands):
        """Run every command under a prefix of its own; give each with what it has left in the server."""
        return {name: self._run_alone(server, name.replace(" ", "-"), *given) for name, given in commands.items()}

    def _run_alone(self, server, prefix, arguments, variables, stdin=b""):
        address = f"redis://127.0.0.1:{server.port}"
        ran = self.run(*arguments, stdin=stdin, **{"TIDINGS_URL": address, "TIDINGS_PREFIX": prefix, **variables})
        with redis.Redis.from_url(address) as client:
            ran.keys = sorted(key.decode().removeprefix(f"{prefix}:") for key in client.scan_iter(f"{prefix}:*"))
            ran.entries = [fields for _, fields in client.xrange(f"{prefix}:events")]
            ran.tokens = {key: client.get(f"{prefix}:{key}").decode() for key in ran.keys if key.startswith("token:")}
        return ran


@pytest.fixture(scope="module")
def forks(shell_of_module):
    shell_of_module.write("rules.py", RULES)
    return CleanForks(shell_of_module)


def assert_is_one_message(ran, code, *words):
    """One message on standard error that has all these words; no traceback, no other output."""
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert ran.err.startswith("tidings: ")
    assert ran.err.count("tidings: ") == 1
    for word in words:
        assert word in ran.err


# MODULE:RULES, wrong in every way

TARGETS = {
    "no colon": ("rules", ["'rules'", "MODULE:RULES"]),
    "no module": (":rules", ["':rules'", "MODULE:RULES"]),
    "no name": ("rules:", ["'rules:'", "MODULE:RULES"]),
    "a file": ("rules.py:rules", ["rules.py", "rules:rules"]),
    "no such module": ("nowhere.rules:rules", ["nowhere", "run from the folder"]),
    "no such name": ("rules:missing", ["rules.py", "'missing'", "it has rules"]),
    "another thing": ("rules:other", ["rules.py", "'other'", "str", "it has rules"]),
    "no rules at all": ("no_rules:rules", ["no_rules.py", "'rules'", "Rules()"]),
    "a folder": ("package:rules", ["package", "'rules'"]),
    "no Python": ("bad_syntax:rules", ["bad_syntax.py", "line 1"]),
    "an exception": ("raises:rules", ["raises.py", "line 3", "'seven'"]),
    "a missing import": ("lacks:rules", ["lacks.py", "a_module_that_is_not_there", "install"]),
    "an exit": ("leaves:rules", ["leaves.py", "over"]),
    "an unknown field": ("bad_template:rules", ["bad_template.py", "'name'", "user_id"]),
    "a duplicate type": ("duplicate:rules", ["duplicate.py", "'user.updated'", "Again", "UserUpdated"]),
    "an unknown argument": ("bad_cached:rules", ["bad_cached.py", "'user'", "user_id"]),
    "a local function": ("bad_warm:rules", ["bad_warm.py", "inner", "move it out"]),
    "arguments that do not bind": ("unbound:rules", ["unbound.py", "get_user", "user_id"]),
}


@pytest.fixture(scope="module")
def started(shell_of_module, forks, server):
    (forks.folder / "package").mkdir(exist_ok=True)
    for name, text in BAD_RULES.items():
        shell_of_module.write(f"{name}.py", text)
    return forks.run_all(server, {name: (("worker", target), {}) for name, (target, _) in TARGETS.items()})


@pytest.mark.parametrize("mistake", TARGETS)
def test_rules_that_cannot_be_loaded_are_one_message_that_names_file_name_and_cure(mistake, started):
    assert_is_one_message(started[mistake], 2, *TARGETS[mistake][1])
    assert started[mistake].keys == []


# publish

DEEP = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

GOOD_PUBLICATIONS = {
    "without data": (("publish", "user.seen"), {}),
    "data as text": (("publish", "user.updated", "--data", '{"user_id": 7, "name": "Zoë"}'), {}),
    "data in a file": (("publish", "user.updated", "--data", "@data.json"), {}),
    "data on standard input": (("publish", "user.updated", "--data", "-"), {}, b'{"user_id": 7}'),
    "with subject and rules": (
        ("publish", "user.updated", "--data", '{"user_id": "7"}', "--subject", "user:7", "--rules", "rules:rules"),
        {},
    ),
}

BAD_PUBLICATIONS = {
    "no JSON": (("publish", "user.updated", "--data", "user 7"), ["--data", "JSON"]),
    "half JSON": (("publish", "user.updated", "--data", '{"user_id": 7'), ["--data", "JSON"]),
    "no number": (("publish", "user.updated", "--data", '{"user_id": NaN}'), ["--data"]),
    "a list": (("publish", "user.updated", "--data", "[7]"), ["--data", "list", "object"]),
    "no file": (("publish", "user.updated", "--data", "@missing.json"), ["missing.json", "No such file"]),
    "a folder": (("publish", "user.updated", "--data", "@package"), ["package", "directory"]),
    "a file that is no text": (("publish", "user.updated", "--data", "@bytes"), ["@bytes", "UTF-8"]),
    "input that is no text": (
        ("publish", "user.updated", "--data", "-"),
        ["--data", "UTF-8"],
        b'{"name": "\xff"}',
    ),
    "nothing on standard input": (("publish", "user.updated", "--data", "-"), ["--data", "JSON"]),
    "nested too deeply": (("publish", "user.updated", "--data", "-"), ["--data", "deep"], DEEP),
    "text that is no Unicode": (
        ("publish", "user.updated", "--data", '{"name": "\\ud800"}'),
        ["user.updated", "surrogate"],
    ),
    "a type that is no text": (
        ("publish", os.fsdecode(b"user.\xff")),
        [],
    ),
    "an empty type": (("publish", ""), ["type"]),
    "a value that does not fit": (
        ("publish", "user.updated", "--data", '{"user_id": "seven"}', "--rules", "rules:rules"),
        ["user.updated", "user_id"],
    ),
    "a field too few": (("publish", "user.updated", "--rules", "rules:rules"), ["user.updated", "user_id"]),
    "a field too many": (
        ("publish", "user.updated", "--data", '{"user_id": 7, "x": 1}', "--rules", "rules:rules"),
        ["user.updated", "x"],
    ),
    "rules that are not there": (("publish", "user.updated", "--rules", "nowhere:rules"), ["nowhere"]),
}


@pytest.fixture(scope="module")
def published(shell_of_module, forks, server):
    shell_of_module.write("data.json", '{"user_id": 7}')
    (forks.folder / "bytes").write_bytes(b'{"name": "\xff"}')
    (forks.folder / "package").mkdir(exist_ok=True)
    bad = {name: (arguments, {}, *stdin) for name, (arguments, _, *stdin) in BAD_PUBLICATIONS.items()}
    return forks.run_all(server, {**GOOD_PUBLICATIONS, **bad})


@pytest.mark.parametrize(
    ("name", "event_type", "data", "subject"),
    [
        ("without data", "user.seen", {}, None),
        ("data as text", "user.updated", {"user_id": 7, "name": "Zoë"}, None),
        ("data in a file", "user.updated", {"user_id": 7}, None),
        ("data on standard input", "user.updated", {"user_id": 7}, None),
        ("with subject and rules", "user.updated", {"user_id": 7}, b"user:7"),
    ],
)
def test_publish_writes_one_event_and_prints_its_id(name, event_type, data, subject, published):
    ran = published[name]
    assert (ran.code, ran.err) == (0, "")
    (fields,) = ran.entries
    assert ran.out.count("-") == 1
    assert fields[b"type"].decode() == event_type
    assert json.loads(fields[b"data"]) == data
    assert fields.get(b"subject") == subject
    assert fields[b"specversion"] == b"1.0"


@pytest.mark.parametrize("mistake", BAD_PUBLICATIONS)
def test_data_that_are_no_event_are_one_message_and_nothing_is_written(mistake, published):
    assert_is_one_message(published[mistake], 2, *BAD_PUBLICATIONS[mistake][1])
    assert published[mistake].keys == []


# invalidate, stats


@pytest.fixture(scope="module")
def commanded(forks, server):
    variables = {
        "TIDINGS_WORKER_BATCH": "0",
        "TIDINGS_WORKER_POLL": "often",
        "TIDINGS_DEFAULT_TTL": "s3cret",
        "TIDINGS_GROUP": "",
    }
    memory = {"TIDINGS_URL": "memory://"}
    commands = {
        "by name": (("invalidate", "--namespace", "stats", "--tag", "user:7", "--tag", "user:8"), {}),
        "all": (("invalidate", "--all"), {}),
        "nothing": (("invalidate",), {}),
        "no namespace": (("invalidate", "--namespace", "not a namespace"), {}),
        "an empty tag": (("invalidate", "--tag", ""), {}),
        "wait in vain": (("publish", "user.updated", "--wait", "0.1"), {}),
        "worker settings": (("worker", "rules:rules"), variables),
        "no server": (("publish", "user.updated"), {"TIDINGS_URL": ""}),
        "memory publish": (("publish", "user.updated"), memory),
        "memory invalidate": (("invalidate", "--all"), memory),
        "memory stats": (("stats",), memory),
        "memory worker": (("worker", "rules:rules"), memory),
    }
    return forks.run_all(server, commands)


def test_invalidate_changes_the_tokens_of_what_it_names_and_no_others(commanded):
    ran = commanded["by name"]
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert set(ran.tokens) == {"token:namespace:stats", "token:tag:user:7", "token:tag:user:8"}
    assert ran.keys == ["invalidations", *sorted(ran.tokens)]
    assert all("call:invalidate " in token for token in ran.tokens.values())


def test_invalidate_all_changes_the_token_of_everything(commanded):
    assert commanded["all"].code == 0
    assert set(commanded["all"].tokens) == {"token:all"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", ["--namespace", "--tag", "--all"]),
        ("no namespace", ["'not a namespace'"]),
        ("an empty tag", ["tag"]),
        ("no server", ["TIDINGS_URL", "tidings worker"]),
        ("memory publish", ["TIDINGS_URL"]),
        ("memory invalidate", ["TIDINGS_URL"]),
        ("memory stats", ["TIDINGS_URL"]),
        ("memory worker", ["TIDINGS_URL"]),
    ],
)
def test_a_command_that_cannot_do_anything_says_so(name, words, commanded):
    assert_is_one_message(commanded[name], 2, *words)
    assert commanded[name].keys == []


def test_an_event_that_nobody_applies_is_written_and_the_wait_fails(commanded):
    ran = commanded["wait in vain"]
    assert ran.code == 3
    assert len(ran.entries) == 1
    assert "not applied after 0.1 s" in ran.err
    assert "Traceback" not in ran.err


def test_every_wrong_setting_of_the_worker_is_listed_at_once(commanded):
    assert_is_one_message(commanded["worker settings"], 2, "TIDINGS_WORKER_BATCH", "TIDINGS_WORKER_POLL")


def test_stats_show_the_stream_the_groups_and_the_entries(forks, url, client):
    client.xgroup_create("events", "tidings", id="0", mkstream=True)
    for _ in range(3):
        client.xadd("events", {"type": "user.updated"})
    client.xreadgroup("tidings", "me", {"events": ">"}, count=1)
    client.xadd("events:dead", {"reason": "because"})
    client.hset("events:counts", mapping={"applied": 5, "unruled:user.seen": 2})
    client.set("cache:users:get_user:1", b"x")
    client.set("cache:users:get_user:2", b"x")
    client.set("token:all", b"x")

    shown = forks.run("stats", "--json", TIDINGS_URL=url)
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(shown.out)
    assert {span: one["namespaces"] for span, one in found.pop("reads").items()} == {"5m": {}, "1h": {}}
    assert found == {
        "server": url,
        "events": 3,
        "groups": [{"stream": "events", "name": "tidings", "lag": 2, "pending": 1, "consumers": 1}],
        "dead_letters": 1,
        "invalidations_logged": 0,
        "warms_queued": 0,
        "worker": {"applied": 5, "unruled:user.seen": 2},
        "entries": {"users": 2},
        "entries_complete": True,
    }
    told = forks.run("stats", TIDINGS_URL=url)
    assert told.code == 0
    words = " ".join(told.out.split())
    for expected in (
        "events in the stream 3",
        "group tidings of events 2 to read, 1 pending, 1 consumers",
        "Nothing was reported of reads in the last",
        "users 2 0 -",
    ):
        assert expected in words


def test_stats_of_an_empty_server_are_zeros(forks, url):
    shown = forks.run("stats", "--json", TIDINGS_URL=url)
    assert shown.code == 0
    assert json.loads(shown.out)["events"] == 0
    assert json.loads(shown.out)["groups"] == []


def read_and_report(address, prefix):
    """Be three processes that read, the last of them with an invalidation and a load that fails."""
    for reads in (8, 2):
        with Cache(address, prefix=prefix).sync as cache:
            for _ in range(reads):
                cache.get_or_set("key", lambda: 1, namespace="users")
    with Cache(address, prefix=prefix).sync as cache:
        cache.invalidate(namespaces=["users"], tags=["user:7"])
        cache.get_or_set("key", lambda: 1, namespace="users")
        with pytest.raises(ZeroDivisionError):
            cache.get_or_set("other", lambda: 1 // 0, namespace="orders")


@pytest.fixture(scope="module")
def reported(forks, server):
    """What `tidings stats` says of what processes have reported."""
    address = f"redis://127.0.0.1:{server.port}"
    read_and_report(address, "read")
    with redis.Redis.from_url(address) as client:
        window, _ = window_at(client.time()[0])
        client.hset(f"older:stats:{window - 10}", mapping={"before:hits": 7, ":host:1:ab": 1})
        client.hset(f"older:stats:{window - 100}", mapping={"long-before:hits": 7, ":host:1:ab": 1})
        counted = {f"{name}:hits": name for name in range(1000, 1060)}
        client.hset(f"many:stats:{window}", mapping={**counted, ":host:1:ab": 1})
        odd = {"[red]\x1b[2J:hits": 7, "users": 1, "users:hits": "?", ":": 1}
        client.hset(f"odd:stats:{window}", mapping=odd)
        client.hset("odd:events:counts", mapping={"applied": 5, "dead": "many"})
    arguments = {
        "read": ("stats",),
        "read json": ("stats", "--json"),
        "read users": ("stats", "--namespace", "users"),
        "read users json": ("stats", "--json", "-n", "users"),
        "older": ("stats",),
        "older 1h": ("stats", "--window", "1h"),
        "older 2h": ("stats", "--window", "2h"),
        "many": ("stats",),
        "many all": ("stats", "--all"),
        "odd": ("stats",),
    }
    commands = {name: (given, {"TIDINGS_PREFIX": name.partition(" ")[0]}) for name, given in arguments.items()}
    return forks.run_all(server, commands)


def test_stats_show_how_the_reads_of_all_processes_went(reported):
    for span, least in (("5m", 300), ("1h", 3600)):
        found = json.loads(reported["read json"].out)["reads"][span]
        assert least <= found["seconds"] < least + WINDOW_SECONDS
        assert found["processes"] == 3
        assert (found["invalidations"], found["invalidations_complete"]) == (2, True)
        assert found["loads_per_invalidation"] == 1.5
        users, orders = found["namespaces"]["users"], found["namespaces"]["orders"]
        names = ("reads", "hits", "misses", "invalidated", "loads", "hit_rate", "local_rate", "load_errors")
        assert [users[name] for name in names] == [11, 9, 1, 1, 2, 0.8182, 0.0, 0]
        assert [orders[name] for name in names] == [1, 0, 1, 0, 1, 0.0, 0.0, 1]
        assert users["load_ms"] >= 0
    table = reported["read"].out
    assert "as 3 processes reported them; 2 invalidations, 1.5 loads each." in " ".join(table.split())
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    assert rows["(all)"][:7] == ["2", "12", "75.0%", "0.0%", "2", "1", "3"]
    assert rows["users"][:7] == ["1", "11", "81.8%", "0.0%", "1", "1", "2"]
    # A load in progress, or that failed, leaves its mark where the entry is to be.
    assert rows["orders"] == ["1", "1", "0.0%", "0.0%", "1", "0", "1", "-", "-", "1"]


def test_stats_of_one_namespace_have_no_other(reported):
    found = json.loads(reported["read users json"].out)
    assert (list(found["entries"]), list(found["reads"]["1h"]["namespaces"])) == (["users"], ["users"])
    table = reported["read users"].out
    assert "users" in table
    assert "orders" not in table
    assert "(all)" not in table


def test_stats_show_the_window_that_was_asked_for(reported):
    assert "before" not in reported["older"].out
    hour = reported["older 1h"].out
    assert "as 1 process reported them; 0 invalidations." in " ".join(hour.split())
    assert "before" in hour
    assert "long-before" not in hour
    assert reported["older 2h"].code == 2


def test_stats_show_the_namespaces_that_are_read_most(reported):
    names = [line.split()[0] for line in reported["many"].out.splitlines() if line.startswith("10")]
    assert names == [str(name) for name in range(1059, 1039, -1)]
    assert "40 more namespaces: --all" in reported["many"].out
    assert len([line for line in reported["many all"].out.splitlines() if line.startswith("10")]) == 60


def test_stats_show_what_others_have_written_as_text(reported):
    ran = reported["odd"]
    assert (ran.code, ran.err) == (0, "")
    assert "[red]\\x1b[2J" in ran.out
    assert "worker: applied" in ran.out
    assert "worker: dead" not in ran.out


def test_stats_fit_80_columns(shell, url, client):
    window, _ = window_at(client.time()[0])
    counted = {f"a-namespace-with-a-long-name-{number:02}:hits": 123_456_789 * number for number in range(60)}
    ages = {"a-namespace-with-a-long-name-59:age_s": 99_999_999, "a-namespace-with-a-long-name-59:age_s:count": 1}
    client.hset(f"stats:{window}", mapping={**counted, **ages, ":host:1:ab": 1})
    told = shell.run("stats", TIDINGS_URL=url, COLUMNS="80")
    assert (told.code, told.err) == (0, "")
    assert max(map(len, told.out.splitlines())) <= 80
    row = next(line for line in told.out.splitlines() if "7.2G" in line)
    assert row.split()[2:] == ["7.2G", "100.0%", "0.0%", "0", "0", "0", "-", "1157d", "0"]


# A server that is away, and the password

SECRET = "s3cret"  # noqa: S105
AWAY = f"redis://app:{SECRET}@127.0.0.1:1/0"

COMMANDS = {
    "publish": ("publish", "user.updated", "--data", '{"user_id": 7}'),
    "invalidate": ("invalidate", "--all"),
    "stats": ("stats", "--json"),
    "worker": ("worker", "rules:rules"),
}

ODD_URLS = {
    "another scheme": (f"http://app:{SECRET}@127.0.0.1:1/0", 2),
    "no scheme": (f"app:{SECRET}@127.0.0.1:1/0", 2),
    "one slash": (f"redis:/app:{SECRET}@127.0.0.1:1/0", 2),
    "no port": (f"redis://app:{SECRET}@127.0.0.1:first/0", 2),
    "no bracket": (f"redis://app:{SECRET}@[::1/0", 2),
    "slash in the password": (f"redis://app:x/{SECRET}@127.0.0.1:1/0", 2),
    "hash in the password": (f"redis://app:x#{SECRET}@127.0.0.1:1/0", 2),
    "question mark in the password": (f"redis://app:x?{SECRET}@127.0.0.1:1/0", 2),
    "at sign in the password": (f"redis://app:{SECRET}@{SECRET}@127.0.0.1:1/0", 3),
    "password in the query": (f"redis://127.0.0.1:1/0?password={SECRET}", 3),
    "unknown option": (f"redis://127.0.0.1:1/0?pass={SECRET}", 2),
    "wrong option": (f"redis://127.0.0.1:1/0?socket_timeout={SECRET}", 2),
    "a socket": (f"unix://app:{SECRET}@/tmp/nothing.sock", 3),
}


@pytest.fixture(scope="module")
def kept_away(forks, server):
    commands = {name: (command, {"TIDINGS_URL": AWAY}) for name, command in COMMANDS.items()}
    for name, (address, _) in ODD_URLS.items():
        commands[name] = (COMMANDS["publish"], {"TIDINGS_URL": address})
    wrong = f"redis://app:{SECRET}@127.0.0.1:{server.port}"
    commands["wrong password"] = (COMMANDS["publish"], {"REDIS_URL": wrong, "TIDINGS_URL": ""})
    return forks.run_all(server, commands)


@pytest.mark.parametrize("command", [*COMMANDS, "wrong password"])
def test_a_server_that_is_away_is_exit_code_3(command, kept_away):
    ran = kept_away[command]
    assert ran.code == 3
    assert "127.0.0.1" in ran.err
    if command != "worker":
        assert_is_one_message(ran, 3)


@pytest.mark.parametrize("address", ODD_URLS)
def test_a_url_that_cannot_be_meant_is_one_message(address, kept_away):
    assert_is_one_message(kept_away[address], ODD_URLS[address][1])


@pytest.mark.parametrize("name", [*COMMANDS, *ODD_URLS, "wrong password"])
def test_a_password_appears_in_no_message(name, kept_away):
    assert SECRET not in kept_away[name].out + kept_away[name].err


def test_a_password_that_is_right_appears_in_no_output(shell, forks, new_server):
    shell.write("rules.py", RULES)
    server = new_server()
    address = f"redis://127.0.0.1:{server.port}"
    with redis.Redis.from_url(address) as client:
        client.config_set("requirepass", SECRET)
    variables = {"TIDINGS_URL": address.replace("//", f"//:{SECRET}@"), "TIDINGS_WORKER_BLOCK_MS": "100"}
    worker = shell.start("worker", "rules:rules", **variables)
    worker.event("worker_started")
    ran = [
        forks.run("publish", "user.updated", "--data", '{"user_id": 7}', "--wait", "5", **variables),
        forks.run("stats", **variables),
        forks.run("stats", "--json", **variables),
    ]
    assert [process.code for process in ran] == [0, 0, 0]
    server._process.kill()
    worker.event("redis_away")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert all(SECRET not in process.out + process.err for process in [worker, *ran])
    assert address in worker.err


def test_a_frozen_server_is_exit_code_3_within_the_timeout(forks, new_server):
    server = new_server()
    server._process.send_signal(signal.SIGSTOP)
    ran = forks.run(
        "publish", "user.updated", TIDINGS_URL=f"redis://127.0.0.1:{server.port}", TIDINGS_OPERATION_TIMEOUT="0.2"
    )
    assert_is_one_message(ran, 3, "127.0.0.1")


def test_a_wait_on_a_server_that_freezes_ends_all_the_same(shell, new_server, until):
    server = new_server()
    address = f"redis://127.0.0.1:{server.port}"
    waiting = shell.start(
        "publish", "user.updated", "--wait", "1", TIDINGS_URL=address, TIDINGS_OPERATION_TIMEOUT="0.2"
    )
    with redis.Redis.from_url(address) as client:
        until(lambda: client.info("clients")["blocked_clients"] == 1, "the blocked read")
    server._process.send_signal(signal.SIGSTOP)
    assert waiting.wait(6) == 3
    assert "Traceback" not in waiting.err


# Two terminals in one folder, no configuration

SERVICE = """
from pathlib import Path

from tidings import cached
from tidings_worker import Rules

@cached(namespace="users", tags=["user:{user_id}"])
async def get_name(user_id: int) -> str:
    return Path("name").read_text()

rules = Rules()
rules.map("user.renamed", tags=["user:{user_id}"])
rules.map("user.visited", warm=[get_name])
"""

READER = """
import asyncio
import sys
from service import get_name

with asyncio.Runner() as runner:
    for line in sys.stdin:
        print(runner.run(get_name(int(line))), flush=True)
"""


def test_what_a_second_terminal_publishes_changes_what_a_third_process_reads(shell, forks, until):
    here = partial(forks.run, folder=shell.folder)
    shell.write("service.py", SERVICE)
    shell.write("reader.py", READER)
    name = shell.write("name", "Ada")
    assert here("publish", "user.renamed").code == 2  # there is no server yet

    worker = shell.start("worker", "service:rules")
    address = worker.event("worker_started")["server"]
    reader = shell.start_program(sys.executable, "reader.py")
    assert reader.ask("7") == "Ada"
    name.write_text("Grace")
    assert reader.ask("7") == "Ada"  # cached

    published = here("publish", "user.renamed", "--data", '{"user_id": 7}', "--wait", "5")
    assert (published.code, published.err) == (0, "applied\n")
    assert reader.ask("7") == "Grace"

    name.write_text("Mary")
    assert here("invalidate", "--tag", "user:7").code == 0
    assert reader.ask("7") == "Mary"

    assert here("publish", "user.visited", "--data", '{"user_id": 8}').code == 0
    assert worker.event("warmed")["call"] == "service:get_name"
    name.write_text("Ida")
    assert reader.ask("8") == "Mary"  # as it was warmed

    dead = here("publish", "user.renamed", "--wait", "5")
    assert dead.code == 2
    assert "user_id" in dead.err

    second = shell.start("worker", "service:rules")
    assert second.event("worker_started")["server"] == address
    with redis.Redis.from_url(address) as client:
        until(lambda: len(client.xinfo_consumers("events", "tidings")) == 3, "both workers to read, beside the mark")
        second.send(signal.SIGTERM)
        assert second.wait() == 0
        worker.send(signal.SIGINT)
        assert worker.wait() == 0
        with pytest.raises(redis.ConnectionError):
            client.ping()
    assert "Traceback" not in worker.err + second.err
    assert here("stats").code == 2  # the server has gone with its owner
