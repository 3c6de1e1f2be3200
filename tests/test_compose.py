"""docker-compose.yml without Docker: it parses, and each service's command does what it says, run by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import redis
import yaml
from tidings_worker.embedded import server_program
from tidings_worker.health import Health, pages, serving
from tidings_worker.metrics import Metrics

COMPOSE = yaml.safe_load((Path(__file__).parent.parent / "docker-compose.yml").read_text())


def test_redis_starts_as_a_worker_needs_it_durable_and_evicting_nothing(tmp_path):
    program, *options = COMPOSE["services"]["redis"]["command"]
    assert program == "redis-server"
    socket = tmp_path / "redis.sock"
    server = subprocess.Popen(
        [server_program(), *options, "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("eady to accept connections" in line for line in server.stdout)
        client = redis.Redis(unix_socket_path=str(socket), decode_responses=True)
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.close()
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


def test_the_worker_runs_rules_that_load_against_the_other_service():
    worker = COMPOSE["services"]["worker"]
    *shell, command = worker["command"]
    assert shell == ["sh", "-c"]
    rules = command.rpartition("${RULES:-")[2].removesuffix("}")
    # In a process of its own: the demo defines an event type, which other tests define too.
    program = f"from tidings_worker.loading import load_rules; assert load_rules({rules!r}).event_types"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert worker["environment"]["TIDINGS_URL"].startswith("redis://redis:")
    assert worker["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_the_health_check_of_the_worker_asks_its_port_and_fails_where_nobody_answers():
    worker = COMPOSE["services"]["worker"]
    _, _, *program = worker["healthcheck"]["test"]
    assert f":{worker['environment']['TIDINGS_WORKER_HTTP_PORT']}/healthz" in program[-1]
    with serving("127.0.0.1", 0, pages(Health([]), Metrics().expose)) as port:
        asked = [sys.executable, *(part.replace("9464", str(port)) for part in program)]
        subprocess.run(asked, check=True)
    assert subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.parametrize("service", ["redis", "worker"])
def test_volumes_are_declared_or_paths(service):
    for volume in COMPOSE["services"][service]["volumes"]:
        source = volume.partition(":")[0]
        assert source.startswith(".") or source in COMPOSE["volumes"]
