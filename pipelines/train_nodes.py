"""Nodes of a training: the interface through which its workers talk, and what is said about nodes and workers."""

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state as cluster_state  # a drain notice is nowhere else
from ray.train.torch import TorchConfig

from .train_reports import WorkerSign

LOOK_AT_NODES_EVERY = 5.0
"""Seconds between two looks at the nodes of the cluster."""

SAY_AGAIN = 60.0
"""Seconds between two lines about the same wait, and before the first one where the nodes have room."""

USUAL_SILENCES = 3.0
"""Longest silence of a worker that is not named, relative to the longest one that has ended by itself."""

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915


class NodeTorchConfig(TorchConfig):  # type: ignore[misc]
    """PyTorch's process group, in which each worker listens where the other nodes reach its own."""

    @property
    def backend_cls(self) -> Any:
        return _NodeBackend


class _NodeBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Names the interfaces before the process group is made."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Names the interface of this node's address to Gloo, unless the environment does.

    By itself Gloo takes what the host's name resolves to, which is often loopback.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(_GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an IPv4 address; None if none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


@dataclass(frozen=True)
class NodesSeen:
    """Nodes of the cluster at a look.

    Args:
        time: Time of the look, in seconds of the monotonic clock.
        alive: Resources of each node that is alive.
        draining: Ids of the nodes that Ray has announced to take away.
    """

    time: float
    alive: Sequence[Mapping[str, float]] = ()
    draining: frozenset[str] = frozenset()


@contextlib.contextmanager
def watched_nodes() -> Iterator[Callable[[], NodesSeen]]:
    """Yields a function that returns the nodes as last seen, and never waits.

    A thread looks: Ray waits for minutes for an answer that was lost with a connection.
    """
    seen, ended = NodesSeen(time.monotonic()), threading.Event()

    def look() -> None:
        nonlocal seen
        while not ended.wait(LOOK_AT_NODES_EVERY):
            with contextlib.suppress(Exception):  # the head is away: the last look becomes old, which is said
                alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                seen = NodesSeen(time.monotonic(), alive, frozenset(cluster_state.get_draining_nodes()))

    threading.Thread(target=look, name="nodes", daemon=True).start()
    try:
        yield lambda: seen
    finally:
        ended.set()


@dataclass
class HeardWorker:
    """Signs of life of a worker.

    Args:
        node: Address of its node.
        last: Time of its last sign of life, in seconds.
        longest: Longest silence of it that has ended, in seconds.
    """

    node: str
    last: float
    longest: float = 0.0


@dataclass
class TrainWatch:
    """Nodes that a training waits for and workers of which nothing is heard, in lines for people.

    Args:
        workers: Fewest workers with which the training runs.
        each: Resources of a worker.
        nodes: Returns the nodes as last seen.
        clock: Returns the time, in seconds.
    """

    workers: int
    each: Mapping[str, float]
    nodes: Callable[[], NodesSeen]
    clock: Callable[[], float] = time.monotonic
    _heard: dict[int, HeardWorker] = field(default_factory=dict)
    _since: float | None = None  # time at which the room was found too small

    def __post_init__(self) -> None:
        self._began = self._looked = self._said = self.clock()

    def heard(self, signs: Sequence[WorkerSign]) -> None:
        """Notes signs of life."""
        now = self.clock()
        for sign in signs:
            before = self._heard.get(sign.rank)
            if before is None or before.node != sign.address:
                self._heard[sign.rank] = HeardWorker(sign.address, now)
            else:
                before.longest, before.last = max(before.longest, now - before.last), now
            for rank in [rank for rank in self._heard if rank >= sign.world]:  # fewer workers go on
                del self._heard[rank]

    @property
    def silence(self) -> float:
        """Seconds since a sign of life of any worker; 0 before the first one."""
        return self.clock() - max((one.last for one in self._heard.values()), default=self.clock())

    def look(self) -> str | None:
        """Returns a line if there is something to say."""
        now = self.clock()
        if now - self._looked < LOOK_AT_NODES_EVERY:
            return None
        self._looked, seen = now, self.nodes()
        room = sum(_fitting(node, self.each) for node in seen.alive)
        needs = self._need(room, len(seen.alive))
        if now - seen.time >= SAY_AGAIN:
            return self._say(now, f"the cluster's head has not answered {_since(now - seen.time)}")
        if seen.alive and room < self.workers:
            is_new = self._since is None
            self._since = now if self._since is None else self._since
            return self._say(now, f"waiting for a node {_since(now - self._since)}: {needs}", at_once=is_new)
        if self._since is not None:
            self._since, self._began = None, now
            self._heard.clear()  # others take their places
            return self._say(now, f"going on: {needs}", at_once=True)
        if not self._heard:
            return self._say(now, f"no worker has reported {_since(now - self._began)}: {needs}")
        silent = [f"{rank} on {one.node} {_since(now - one.last)}" for rank, one in self._silent(now)]
        if silent:
            return self._say(now, f"nothing heard of worker {', '.join(silent)}; it is at something long, or cut off")
        return None

    def _silent(self, now: float) -> list[tuple[int, HeardWorker]]:
        """Workers, by rank, that have been silent for much longer than ever before."""
        limit = max([SAY_AGAIN, *(USUAL_SILENCES * one.longest for one in self._heard.values())])
        return [(rank, one) for rank, one in sorted(self._heard.items()) if now - one.last >= limit]

    def _say(self, now: float, line: str, at_once: bool = False) -> str | None:
        if not at_once and now - self._said < SAY_AGAIN:
            return None
        self._said = now
        return line

    def _need(self, room: int, nodes: int) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        return (
            f"{self.workers} workers with {each} each are needed, and the cluster's {nodes} nodes have room for {room}"
        )


def _fitting(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Number of workers that a node has room for when nothing else runs there."""
    # a tenth of a core fits ten times into one, although 1.0 // 0.1 is 9
    return min((int(node.get(name, 0.0) / amount + 1e-6) for name, amount in each.items() if amount), default=0)


def _since(seconds: float) -> str:
    began = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
    return f"since {began} ({seconds:.0f} s)"
