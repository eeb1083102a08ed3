"""Pipelines, trainings and a service on one cluster under random faults: nothing is lost, and nothing grows.

`make soak` runs it for an hour and prints what it saw. `SOAK_SEED` repeats the choices of a run.
"""

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.scenes import Scene, scene
from tests.cluster.soak import FAULTS, WARM, Fault, Hosts, Service, Watch, Work, start_training

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
SEED = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 10**6)))
NODES, CORES = 3, 3
WORKS = ("decompose", "train", "tokenize")
MOST_BYTES, MOST_DESCRIPTORS = 64 << 20, 32
"""Most that a process of the service may hold at the end beyond what it held when it was warm."""

pytestmark = [
    pytest.mark.timeout(60 * MINUTES + 2400),
    pytest.mark.skipif(not MINUTES, reason="faults at random are for `make soak`, which sets SOAK_MINUTES"),
]


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "shared") as made:
        yield made


def start(scene: Scene, kind: str, storage: str, name: str) -> Work:
    if kind == "train":
        return start_training(scene, storage, name)
    return scene.run(kind, storage, name, "--workers", "2")


def test_nothing_is_lost_and_nothing_grows(soaked: Scene) -> None:
    print(f"\nseed {SEED}")
    random.seed(SEED)
    hosts = Hosts(soaked.cluster, CORES)
    hosts.fill(NODES)
    undisturbed = start_training(soaked, "shared", "undisturbed-train")
    assert undisturbed.job.wait() == 0, undisturbed.job.shown
    expected = {"train": undisturbed.content(), **soaked.expected}
    service = Service(soaked.cluster, soaked.folder / "service")
    watch, begin = Watch(), time.monotonic()
    for number, (kind, fault) in enumerate(pairs()):
        watch.read([soaked.cluster.head, hosts.nodes[0]])
        if time.monotonic() - begin > 60 * MINUTES:
            break
        storage = random.choice(("shared", "s3"))
        work = start(soaked, kind, storage, f"{number}-{kind}")
        work.job.wait_until(work.has_begun, "nothing is made")
        host = random.choice([one for one in hosts.victims if work.is_at_work(one)] or hosts.victims)
        since = time.time()
        fault(hosts, work, host)
        hosts.replace_lost()
        assert work.job.wait(900) == 0, work.job.shown
        assert work.content() == expected[kind], f"{kind} after {fault.__name__}"
        service.job.wait_until(service.answers_since(since), f"no answers after {fault.__name__}")
        minutes = (time.monotonic() - begin) / 60
        print(f"{minutes:5.1f} min: {kind} on {storage}, {fault.__name__}: equal after {time.time() - since:.0f} s")
    check_service(service)
    check_growth(watch, begin + WARM * 60 * MINUTES)


def pairs() -> Iterator[tuple[str, Fault]]:
    """All pairs of work and fault in a random order, and again for ever."""
    every = list(itertools.product(WORKS, FAULTS))
    while True:
        yield from random.sample(every, len(every))


def check_service(service: Service) -> None:
    """Prints what came of the requests, and fails if one was refused, or a video that was accepted is not there."""
    statuses = Counter(one["status"] for one in service.asked())
    videos = list(service.videos())
    print(f"answers to chats: {dict(statuses)}, longest gap {service.longest_gap():.0f} s; {len(videos)} videos")
    assert not any(isinstance(one, int) and 400 <= one < 500 for one in statuses)
    assert videos
    assert all(video["status"] == "completed" for video in videos), videos
    assert service.stop() == 0, service.job.shown


def check_growth(watch: Watch, warm: float) -> None:
    """Prints what each process that lived long has grown by, and fails if one of ours has grown."""
    for watched in watch.processes.values():
        if growth := watched.growth(warm):
            _, held, open_files = watched.readings[-1]
            more = f"{held / 1e6:.0f} MB ({growth[0] / 1e6:+.0f}), {open_files} descriptors ({growth[1]:+d})"
            print(f"{watched.name}: {more}")
            if "videolavit" in watched.name or "jobs.serve" in watched.name:
                assert growth[0] < MOST_BYTES, watched
                assert growth[1] < MOST_DESCRIPTORS, watched
