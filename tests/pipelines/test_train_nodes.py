"""Interfaces of a training's workers, and what is said about nodes that are missing."""

import os
import re
import socket

import pytest

from pipelines.train_nodes import LOOK_AT_NODES_EVERY, SAY_AGAIN, NodesSeen, TrainWatch, choose_interface, interface_of
from pipelines.train_reports import RunReports, WorkerSign


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


class Scene:
    """Nodes and a clock of their own, and a watch over them of two workers with a core each."""

    def __init__(self, *cores: float) -> None:
        self.now, self.cores, self.is_answering = 0.0, list(cores), True
        self.seen = NodesSeen(0.0)
        self.watch = TrainWatch(2, {"CPU": 1.0}, self.look, lambda: self.now)

    def look(self) -> NodesSeen:
        if self.is_answering:
            self.seen = NodesSeen(self.now, [{"CPU": one} for one in self.cores])
        return self.seen

    def lines(self, seconds: float, *ranks: int, every: int = 1, world: int = 2) -> list[str]:
        """Lines that are said in the next seconds, without times of day, while workers give signs of life."""
        said = []
        end = self.now + seconds
        while self.now < end:
            self.now += 1
            if self.now % every == 0:
                self.watch.heard([WorkerSign(rank, world, f"node{rank}", f"10.0.0.{rank}") for rank in ranks])
            line = self.watch.look()
            if line is not None:
                said.append(re.sub(r"\d\d:\d\d:\d\d", "T", line))
        return said


def test_a_training_says_that_it_waits_for_a_node_and_since_when() -> None:
    scene = Scene(0, 1, 1)
    assert scene.lines(1000, 0, 1) == []
    scene.cores.pop()
    need = "2 workers with 1 CPU each are needed, and the cluster's 2 nodes have room for 1"
    assert scene.lines(2 * LOOK_AT_NODES_EVERY) == [f"waiting for a node since T (0 s): {need}"]
    assert scene.lines(SAY_AGAIN) == [f"waiting for a node since T ({SAY_AGAIN:.0f} s): {need}"]
    scene.cores.append(1)
    going_on = "going on: 2 workers with 1 CPU each are needed, and the cluster's 3 nodes have room for 2"
    assert scene.lines(2 * LOOK_AT_NODES_EVERY) == [going_on]


def test_workers_that_do_not_begin_are_no_silence() -> None:
    scene = Scene(2)
    (line,) = scene.lines(SAY_AGAIN + 1)
    assert line.startswith(f"no worker has reported since T ({SAY_AGAIN:.0f} s): ")
    assert scene.lines(1000, 0, 1) == []


def test_a_silent_worker_is_named_with_its_node() -> None:
    scene = Scene(2)
    scene.lines(300, 0, 1)
    (line,) = scene.lines(SAY_AGAIN + LOOK_AT_NODES_EVERY, 0)
    assert line.startswith("nothing heard of worker 1 on 10.0.0.1 since T (")
    assert 0.0 <= scene.watch.silence <= 1.0  # the other one is heard
    first, second = scene.lines(2 * SAY_AGAIN + LOOK_AT_NODES_EVERY)
    assert "worker 1 on 10.0.0.1" in first
    assert "0 on 10.0.0.0" in second
    assert scene.watch.silence > 2 * SAY_AGAIN
    assert scene.lines(300, 0, 1) == []


def test_a_worker_whose_steps_take_long_is_not_silent() -> None:
    scene = Scene(2)
    scene.lines(150, 0, 1, every=50)
    assert scene.lines(140) == []  # a validation, as an example
    (line,) = scene.lines(30)
    assert line.startswith("nothing heard of worker 0 on 10.0.0.0 since T (")


def test_workers_that_are_no_longer_needed_are_not_missed() -> None:
    scene = Scene(2)
    scene.lines(100, 0, 1)
    assert scene.lines(1000, 0, world=1) == []


def test_a_head_that_does_not_answer_is_named() -> None:
    scene = Scene(2)
    scene.lines(100, 0, 1)
    scene.is_answering = False
    (line,) = scene.lines(SAY_AGAIN + LOOK_AT_NODES_EVERY, 0, 1)
    assert line.startswith("the cluster's head has not answered since T (")


def test_fractions_of_a_core_fit() -> None:
    watch = TrainWatch(
        10,
        {"CPU": 0.1},
        lambda: NodesSeen(1e9, [{"CPU": 1.0}]),
        iter(range(10**6)).__next__,  # a second a question
    )
    watch.heard([WorkerSign(rank, 10, "node", "address") for rank in range(10)])
    assert [watch.look() for _ in range(50)] == [None] * 50


def test_workers_stop_where_the_run_does_or_their_node_goes_away() -> None:
    reports, signs = RunReports(), [WorkerSign(rank, 2, f"node{rank}", f"10.0.0.{rank}") for rank in range(2)]
    assert [reports.stops(sign) for sign in signs] == [False, False]
    assert reports.take() == ([], signs)
    assert reports.take() == ([], [])
    reports.drain({"node1"})
    assert [reports.stops(sign) for sign in signs] == [False, True]
    reports.stop()
    assert [reports.stops(sign) for sign in signs] == [True, True]
