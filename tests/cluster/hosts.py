"""Hosts on this machine: network namespaces on a bridge, that can be cut off, healed and killed, and Ray on them."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, command, environment_without_ray, wait_for

RAY_PORT = 6379
STARTS = 3
"""Starts of Ray on a host until a test gives up."""

OBJECT_STORE = 100_000_000
"""Bytes of each host's object store; Ray takes no less than 75 MiB."""

QUICK_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""Environment of a head that takes a host for dead after some 15 s, as docs/operations.md says."""

NODES = """
import json, os, sys, time
from ray._raylet import GcsClient

address, file = sys.argv[1:]
client = None
while True:
    time.sleep(0.5)
    try:
        client = client or GcsClient(address=address)
        nodes = [node for node in client.get_all_node_info().values() if node.state == 0]
    except Exception:  # the head is not up yet
        continue
    alive = [[node.node_manager_address, dict(node.resources_total).get("CPU", 0)] for node in nodes]
    with open(file + ".new", "w") as out:
        json.dump(alive, out)
    os.replace(file + ".new", file)
"""
"""Program that keeps the addresses and cores of the nodes that are alive in a file."""


def ip(*words: str) -> str:
    """Runs the command `ip` and returns what it printed."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass(eq=False)
class Host:
    """A network namespace with an address of its own.

    Args:
        name: Name of the namespace.
        address: IPv4 address.
        link: End of its cable at the bridge.
        folder: Folder of its temporary files and logs.
        environment: Environment variables of its processes.
    """

    name: str
    address: str
    link: str
    folder: Path
    environment: dict[str, str]
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, words: Sequence[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Starts a process on the host, with both of its streams in a file."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                cwd=ROOT,
                env=self.environment | environment,
                stdout=output,
                stderr=output,
            )
        self.started.append(process)
        return process

    def output(self, words: Sequence[str]) -> str:
        """Runs a process on the host, and returns what it printed."""
        run = ["ip", "netns", "exec", self.name, *words]
        return subprocess.run(run, env=self.environment, capture_output=True, text=True).stdout.strip()

    def cut(self) -> None:
        """Cuts the host off."""
        ip("link", "set", self.link, "down")

    def heal(self) -> None:
        """Connects the host again."""
        ip("link", "set", self.link, "up")

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Processes of the host whose command line has a word."""
        found = []
        for pid in ip("netns", "pids", self.name).split():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(int(pid))
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Kills all processes at once, as a power failure would."""
        while processes := self.processes():  # a killed one may have started another
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        for process in self.started:
            process.wait()


@dataclass(eq=False)
class Network:
    """Hosts on a bridge of their own, all below a folder.

    Args:
        name: Name of the bridge; those of hosts and links begin with it.
        prefix: First three numbers of all addresses.
        folder: Folder of the hosts' files; its path is short, for the sake of Ray's sockets.
        environment: Environment variables of all hosts, beside those of this process that are not Ray's.
    """

    name: str
    prefix: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    hosts: list[Host] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Address of this machine, for servers that all hosts reach."""
        return f"{self.prefix}.1"

    def add(self) -> Host:
        """Makes a host."""
        number = len(self.hosts) + 2
        name, link, far = f"{self.name}-{number}", f"{self.name}{number}", f"{self.name}{number}p"
        inherited = environment_without_ray()
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        folder = self.folder / str(number)
        folder.mkdir()
        host = Host(name, f"{self.prefix}.{number}", link, folder, inherited | path | self.environment)
        ip("netns", "add", name)
        self.hosts.append(host)
        ip("link", "add", link, "type", "veth", "peer", "name", far)
        ip("link", "set", far, "netns", name, "name", "eth0")
        ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("link", "set", link, "master", self.name, "up")
        ip("-n", name, "route", "add", "default", "via", self.address)  # by which Ray finds the address of a host
        return host


@contextlib.contextmanager
def network(**environment: str) -> Iterator[Network]:
    """A bridge for hosts, which are ended with all of their processes. Skips the test where only root could."""
    number = secrets.token_bytes(3)
    name, prefix = f"vl{number.hex()}", f"10.{100 + number[0] % 100}.{number[1]}"
    with contextlib.ExitStack() as stack:
        try:
            ip("link", "add", name, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"hosts need root and network namespaces: {getattr(error, 'stderr', error)}".strip())
        stack.callback(ip, "link", "del", name)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vl-", ignore_cleanup_errors=True)))
        made = Network(name, prefix, folder, environment)
        stack.callback(_remove, made.hosts)
        ip("addr", "add", f"{made.address}/24", "dev", name)
        ip("link", "set", name, "up")
        yield made


def _remove(hosts: list[Host]) -> None:
    for host in hosts:
        host.kill()
        with contextlib.suppress(subprocess.CalledProcessError):  # with its namespace, which was not finished
            ip("link", "del", host.link)
        ip("netns", "del", host.name)


@contextlib.contextmanager
def saying(log: Path) -> Iterator[None]:
    """Adds the end of a log to the error of a wait."""
    try:
        yield
    except TimeoutError as error:
        raise TimeoutError(f"{error}; the log says: {log.read_text(errors='replace')[-3000:]}") from None


@dataclass(eq=False)
class Job:
    """A command on the head.

    Args:
        process: Process of the command.
        log: File of what it prints.
    """

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def shown(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], what: str, limit: float = 240) -> None:
        """Waits for a condition, which must come before the end of the command."""
        with saying(self.log):
            wait_for(lambda: self.process.poll() is not None or condition(), what, limit)
        assert self.process.poll() is None, f"{what}, and it has ended: {self.shown}"

    def wait(self, limit: float = 300) -> int:
        """Waits for the end and returns the exit status."""
        with saying(self.log):
            wait_for(lambda: self.process.poll() is not None, "no end", limit)
        return self.process.wait()

    def kill(self) -> None:
        """Kills the process of the command."""
        self.process.kill()
        self.process.wait()


class Cluster:
    """Ray over hosts: a head without cores, and nodes that join and leave.

    Args:
        network: Network of the hosts.
        head_environment: Further environment variables of the head's Ray.
        head_options: Further options of the head's `ray start`.
    """

    def __init__(self, network: Network, head_options: Sequence[str] = (), **head_environment: str) -> None:
        self.network = network
        network.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.head = network.add()
        self.address = f"{self.head.address}:{RAY_PORT}"
        self._nodes, self._jobs = self.head.folder / "nodes", 0
        words = ["--head", f"--port={RAY_PORT}", "--num-cpus=0", "--include-dashboard=false", *head_options]
        self._start_ray(self.head, words, **head_environment)

    def add(self, cores: int = 1) -> Host:
        """Starts a node on a new host, and waits until the head knows it."""
        host = self.network.add()
        words = [f"--address={self.address}", f"--num-cpus={cores}"]
        self._start_ray(host, words)
        return host

    def alive(self) -> dict[str, float]:
        """Cores of the nodes that the head takes for alive, by address; those of one address together."""
        if not self._nodes.exists():
            return {}
        cores: dict[str, float] = {}
        for address, count in json.loads(self._nodes.read_text()):
            cores[address] = cores.get(address, 0) + count
        return cores

    def start(self, *words: Any, **environment: str) -> Job:
        """Starts a command of this project on the head."""
        self._jobs += 1
        log = self.head.folder / f"job{self._jobs}.log"
        return Job(self.head.start(command(*words), log, RAY_ADDRESS=self.address, **environment), log)

    def _start_ray(self, host: Host, words: list[str], **environment: str) -> None:
        """Starts Ray on a host, and again if it gives up: on a busy machine its own time limits are short."""
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        own = [f"--node-ip-address={host.address}", f"--temp-dir={host.folder}/r"]
        store = f"--object-store-memory={OBJECT_STORE}"
        log = host.folder / "ray.log"
        with saying(log):
            for _ in range(STARTS):
                process = host.start([*ray, *own, store, *words], log, **environment)
                if host is self.head:
                    watcher = [sys.executable, "-c", NODES, self.address, str(self._nodes)]
                    host.start(watcher, host.folder / "nodes.log")
                wait_for(lambda: process.poll() is not None or host.address in self.alive(), "Ray is not up")  # noqa: B023
                if process.poll() is None:
                    return
                host.kill()
            raise TimeoutError(f"Ray gave up {STARTS} times")
