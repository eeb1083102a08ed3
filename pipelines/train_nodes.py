"""Nodes of a training: the interface through which its workers talk, and the wait for a node that is missing."""

import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train.torch import TorchConfig

LOOK_AT_NODES_EVERY = 5.0
"""Seconds between two looks at the nodes of the cluster."""

SAY_AGAIN = 60.0
"""Seconds between two lines about the same wait, and before the first one where the nodes have room."""

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


class NodeWatch:
    """Wait of a training for nodes, in lines for people.

    Args:
        workers: Fewest workers with which the training runs.
        each: Resources of a worker.
        nodes: Returns resources of each node that is alive.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self,
        workers: int,
        each: Mapping[str, float],
        nodes: Callable[[], list[Mapping[str, float]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers, self._each, self._nodes, self._clock = workers, each, nodes, clock
        self._began = self._looked = clock()
        self._since: float | None = None  # time at which the room was found too small
        self._said = self._began
        self._is_heard = False

    def heard(self) -> None:
        """Notes that a worker has reported."""
        self._is_heard = True

    def look(self) -> str | None:
        """Returns a line if there is something to say."""
        now = self._clock()
        if now - self._looked < LOOK_AT_NODES_EVERY:
            return None
        self._looked = now
        nodes = self._nodes()
        room = sum(_fitting(node, self._each) for node in nodes)
        if room < self._workers:
            if self._since is None:
                self._since = now
            elif now - self._said < SAY_AGAIN:
                return None
            return self._say(now, f"waiting for a node {_since(now - self._since)}: {self._need(room, len(nodes))}")
        if self._since is not None:
            self._since, self._is_heard = None, False
            self._began = now
            return self._say(now, f"going on: {self._need(room, len(nodes))}")
        if not self._is_heard and now - self._said >= SAY_AGAIN:
            return self._say(now, f"no worker has reported {_since(now - self._began)}: {self._need(room, len(nodes))}")
        return None

    def _say(self, now: float, line: str) -> str:
        self._said = now
        return line

    def _need(self, room: int, nodes: int) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self._each.items())
        return (
            f"{self._workers} workers with {each} each are needed, and the cluster's {nodes} nodes have room for {room}"
        )


def alive_nodes() -> list[Mapping[str, float]]:
    """Resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fitting(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Number of workers that a node has room for when nothing else runs there."""
    # a tenth of a core fits ten times into one, although 1.0 // 0.1 is 9
    return min((int(node.get(name, 0.0) / amount + 1e-6) for name, amount in each.items() if amount), default=0)


def _since(seconds: float) -> str:
    began = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
    return f"since {began} ({seconds:.0f} s)"
