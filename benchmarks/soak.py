"""Kills and cuts at random over pipelines and the service, on several hosts of one machine: nothing may be lost.

Needs root, for hosts are network namespaces. Runs follow one another on a cluster of three nodes while a service
answers questions on the same nodes; every quarter of a minute a host is killed or cut off, its Ray is ended, or the
driver is killed and started again. Each run must have the rows of the undisturbed one; memory and open files of what
stays, the processes of the head, must be flat.
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from benchmarks.shared import console, result_table, verdict
from tests.cluster.hosts import Host
from tests.cluster.scenes import (
    Run,
    Scene,
    driver_killed,
    host_killed,
    raylet_killed,
    scene,
)
from tests.cluster.test_service import PORT, is_answered

NODES = 3
CORES = 2
"""Cores that a node says it has: one for a worker of the run, the rest for the service."""

STARTS = 3
"""Most starts of a run that ends with work left, which says so and is started again."""

PAUSE = (5.0, 25.0)
"""Shortest and longest time between two faults, in seconds."""

CUT = (2.0, 30.0)
"""Shortest and longest cut, in seconds."""

QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "What moves?"}], "max_tokens": 4}
GROWTH = 1.25
"""Most that memory and open files may grow from the first third of the rounds to the last."""


@dataclass
class Soak:
    """Counts of a soak.

    Attributes:
        rounds: Runs that ended with the rows of the undisturbed run.
        lost: Runs that did not, and why.
        faults: Number of faults by kind.
        answered: Questions that the service answered.
        unanswered: Questions that it did not.
        longest_outage: Longest time without an answer, in seconds.
        memory: Resident MiB of the processes that stay, after each round.
        files: Open files of the processes that stay, after each round.
    """

    rounds: int = 0
    lost: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    unanswered: int = 0
    longest_outage: float = 0.0
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="time in which rounds begin")
    parser.add_argument("--seed", type=int, default=0, help="seed of faults and runs")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="folder of the numbers")
    options = parser.parse_args()
    chance, soak = random.Random(options.seed), Soak()  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, scene(Path(folder) / "shared") as made:
        nodes = [made.cluster.add(CORES) for _ in range(NODES)]
        _serve(made)
        ended = threading.Event()
        asking = threading.Thread(target=_ask, args=(made, soak, ended))
        asking.start()
        deadline = time.monotonic() + 60 * options.minutes
        try:
            while time.monotonic() < deadline:
                _round(made, nodes, chance, soak)
        finally:
            ended.set()
            asking.join()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "soak.json").write_text(json.dumps(asdict(soak), indent=2) + "\n")
    _show(soak)
    raise SystemExit(bool(soak.lost) or not soak.rounds)


def _serve(made: Scene) -> None:
    """Starts the service on the nodes of a scene, and waits until it answers."""
    two = {"min_replicas": 2}
    settings = {"model": "tiny", "port": PORT, "storage": str(made.folder / "data"), "language_model": two}
    (made.folder / "serve.yaml").write_text(yaml.safe_dump(settings | {"video_detokenizer": {"min_replicas": 1}}))
    service = made.cluster.start("serve", "--config", made.folder / "serve.yaml")
    service.wait_until(lambda: is_answered(made.cluster.head, "/readyz"), "the service is not ready", limit=600)


def _ask(made: Scene, soak: Soak, ended: threading.Event) -> None:
    """Asks the service a question every other second."""
    last = time.monotonic()
    while not ended.wait(2.0):
        if is_answered(made.cluster.head, "/v1/chat/completions", QUESTION):
            soak.answered += 1
            last = time.monotonic()
        else:
            soak.unanswered += 1
        soak.longest_outage = max(soak.longest_outage, time.monotonic() - last)


def _round(made: Scene, nodes: list[Host], chance: random.Random, soak: Soak) -> None:
    """A run with faults, and what is there after it."""
    pipeline, storage = chance.choice(["decompose", "tokenize"]), chance.choice(["shared", "s3"])
    number = soak.rounds + len(soak.lost)
    run = made.run(pipeline, storage, f"round-{number}", "--workers", str(NODES))
    while _runs_on(run, chance.uniform(*PAUSE)):
        soak.faults[_fault(made, nodes, run, chance)] += 1
    try:
        _end(run, soak)
        assert run.rows() == made.expected[pipeline]
        soak.rounds += 1
    except (AssertionError, TimeoutError) as error:
        soak.lost.append(f"{pipeline} on {storage}: {error}")
        run.job.kill()
    staying = made.cluster.head.processes()
    soak.memory.append(sum(process.memory_info().rss for process in staying) / 2**20)
    soak.files.append(sum(process.num_fds() for process in staying))
    console.print(f"round {number}, {pipeline} on {storage}: {soak.memory[-1]:.0f} MiB, {soak.files[-1]:.0f} files")


def _end(run: Run, soak: Soak) -> None:
    """Waits for the end of a run; one that stopped with work left is started again."""
    for _ in range(STARTS - 1):
        if run.job.wait() != 1:
            break
        soak.faults["ended with work left"] += 1
        run.start_again()
    assert run.job.wait() == 0, run.job.shown


def _runs_on(run: Run, seconds: float) -> bool:
    """Waits for some time; true if the run has not ended by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and run.job.process.poll() is None:
        time.sleep(0.2)
    return run.job.process.poll() is None


def _fault(made: Scene, nodes: list[Host], run: Run, chance: random.Random) -> str:
    """Lets something happen to a node; one that does not come back is replaced."""
    host = chance.choice(nodes)
    kind = chance.choice(["raylet killed", "host killed", "cut", "driver killed"])
    if kind == "driver killed":
        driver_killed(run, host)
        return kind
    if kind == "cut":
        host.cut()
        time.sleep(chance.uniform(*CUT))
        host.heal()
        return kind
    (raylet_killed if kind == "raylet killed" else host_killed)(run, host)
    host.kill()
    nodes[nodes.index(host)] = made.cluster.add(CORES)
    return kind


def _show(soak: Soak) -> None:
    table = result_table("Soak", "what", "count")
    rows = {"runs with all rows": soak.rounds, "runs that lost": len(soak.lost), **soak.faults}
    rows |= {"questions answered": soak.answered, "not answered": soak.unanswered}
    for name, count in rows.items():
        table.add_row(name, str(count))
    console.print(table)
    for line in soak.lost:
        console.print(line, markup=False)
    verdict("longest time without an answer, seconds", soak.longest_outage, 120.0, at_least=False)
    third = max(len(soak.memory) // 3, 1)
    for name, values in (("memory", soak.memory), ("open files", soak.files)):
        growth = statistics.median(values[-third:]) / statistics.median(values[:third])
        verdict(f"{name}, last third of the rounds against the first", growth, GROWTH, at_least=False)


if __name__ == "__main__":
    main()
