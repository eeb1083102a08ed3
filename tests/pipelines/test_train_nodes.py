"""Interfaces of a training's workers, and what is said about nodes that are missing."""

import os
import re
import socket

import pytest

from pipelines.train_nodes import LOOK_AT_NODES_EVERY, SAY_AGAIN, NodeWatch, choose_interface, interface_of


def test_the_interface_of_an_address() -> None:
    loopback = interface_of("127.0.0.1")
    assert loopback in [name for _, name in socket.if_nameindex()]
    assert interface_of("192.0.2.1") is None  # kept for documentation: no host has it


def test_a_choice_of_the_user_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == interface_of("127.0.0.1")


class Nodes:
    """Nodes and a clock of their own, and a watch over them of two workers with a core each."""

    def __init__(self, *cores: float) -> None:
        self.now, self.cores = 0.0, list(cores)
        self.watch = NodeWatch(2, {"CPU": 1.0}, lambda: [{"CPU": one} for one in self.cores], lambda: self.now)

    def lines(self, seconds: float) -> list[str]:
        """Lines that are said in the next seconds, without times of day."""
        said = []
        end = self.now + seconds
        while self.now < end:
            self.now += 1
            line = self.watch.look()
            if line is not None:
                said.append(re.sub(r"\d\d:\d\d:\d\d", "T", line))
        return said


def test_a_training_says_that_it_waits_for_a_node_and_since_when() -> None:
    nodes = Nodes(0, 1, 1)
    nodes.watch.heard()
    assert nodes.lines(1000) == []
    nodes.cores.pop()
    need = "2 workers with 1 CPU each are needed, and the cluster's 2 nodes have room for 1"
    assert nodes.lines(2 * LOOK_AT_NODES_EVERY) == [f"waiting for a node since T (0 s): {need}"]
    assert nodes.lines(SAY_AGAIN) == [f"waiting for a node since T ({SAY_AGAIN:.0f} s): {need}"]
    nodes.cores.append(1)
    going_on = "going on: 2 workers with 1 CPU each are needed, and the cluster's 3 nodes have room for 2"
    assert nodes.lines(2 * LOOK_AT_NODES_EVERY) == [going_on]


def test_workers_that_do_not_begin_are_no_silence() -> None:
    nodes = Nodes(2)
    (line,) = nodes.lines(SAY_AGAIN + 1)
    assert line.startswith(f"no worker has reported since T ({SAY_AGAIN:.0f} s): ")
    nodes.watch.heard()
    assert nodes.lines(1000) == []


def test_fractions_of_a_core_fit() -> None:
    watch = NodeWatch(10, {"CPU": 0.1}, lambda: [{"CPU": 1.0}], iter(range(10**6)).__next__)
    assert [watch.look() for _ in range(50)] == [None] * 50
