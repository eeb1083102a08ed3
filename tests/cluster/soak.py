"""Parts of the soak: trainings beside the data runs, faults of all kinds, a service with clients, and what grows."""

import hashlib
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import psutil
import yaml

from tests.cluster.hosts import Cluster, Host
from tests.cluster.scenes import SHORT_CUT, Launched, Run, Scene, host_killed, raylet_killed, s3_options
from tests.conftest import wait_for
from tests.serve.running import QUICK

PORT = 8000
WARM = 0.25
"""Share of the time after which memory and descriptors are first compared."""

CLIENT = """
import itertools, json, sys, time, urllib.error, urllib.request

url, file = sys.argv[1:]
chat = {"model": "tiny", "messages": [{"role": "user", "content": "What moves?"}], "max_tokens": 4}
video = {"prompt": "a circle moves right"}


def ask(path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=30))


def tried(path, body):
    try:
        return 200, ask(path, body)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except Exception as error:
        return type(error).__name__, {}


with open(file, "a") as out:
    for number in itertools.count():
        began = time.time()
        status, _ = tried("/v1/chat/completions", chat)
        job = tried("/v1/videos", video)[1].get("id") if number % 20 == 0 else None
        out.write(json.dumps({"time": began, "status": status, "job": job}) + "\\n")
        out.flush()
        time.sleep(1)
"""
"""Program that chats every second, and asks for a video now and then; what came of it goes to a file."""

GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"


class Training(Launched):
    """A training of two workers on a cluster."""

    def has_begun(self) -> bool:
        return bool(self._files("checkpoints/*/manifest.json"))

    def is_at_work(self, host: Host) -> bool:
        """True if a worker of the training is on a host."""
        return bool(host.processes("RayTrainWorker"))

    def content(self) -> str:
        """Digest of the trained weights."""
        fs, _ = fsspec.core.url_to_fs(self.output, **self.options)
        files = self._files("model/**/*.safetensors")
        assert files
        return hashlib.sha256(b"".join(fs.cat_file(file) for file in files)).hexdigest()

    def _files(self, pattern: str) -> list[str]:
        fs, path = fsspec.core.url_to_fs(self.output, **self.options)
        fs.invalidate_cache()
        return sorted(map(str, fs.glob(f"{path}/{pattern}")))


Work = Run | Training


def start_training(scene: Scene, storage: str, name: str) -> Training:
    """Starts a training on the clips of the undisturbed decomposition, with its output on a storage."""
    place = str(scene.folder) if storage == "shared" else "s3://bucket"
    options: dict[str, Any] = {"model": "tiny", "input": scene.folder / "undisturbed-decompose"}
    options |= {"output": f"{place}/{name}", "steps": 240, "batch": 2, "micro-batch": 1, "save-every": 20, "workers": 2}
    words = ["train", "motion-tokenizer", *[str(word) for key in options for word in (f"--{key}", options[key])]]
    read = {} if storage == "shared" else s3_options(scene.s3)
    return Training(scene.cluster, f"{place}/{name}", read, words, scene.cluster.start(*words))


# ---- faults -------------------------------------------------------------------------------------------------------


@dataclass
class Hosts:
    """Nodes of the cluster. Faults fall upon all but the first, so that processes live long enough to be watched."""

    cluster: Cluster
    cores: int
    nodes: list[Host] = field(default_factory=list)

    @property
    def victims(self) -> list[Host]:
        return self.nodes[1:]

    def fill(self, count: int) -> None:
        """Adds nodes until there are as many."""
        while len(self.nodes) < count:
            self.nodes.append(self.cluster.add(self.cores))

    def replace(self, host: Host) -> None:
        """Ends all of a host, and adds another one."""
        host.kill()
        self.nodes.remove(host)
        self.nodes.append(self.cluster.add(self.cores))

    def replace_lost(self) -> None:
        """Replaces the hosts that the head does not take for alive."""
        for host in self.victims:
            if host.address not in self.cluster.alive():
                self.replace(host)


def cut_shortly(hosts: Hosts, work: Work, host: Host) -> None:
    host.cut()
    time.sleep(SHORT_CUT)
    host.heal()


def cut_for_good(hosts: Hosts, work: Work, host: Host) -> None:
    host.cut()
    wait_for(lambda: host.address not in hosts.cluster.alive(), "a host that is cut off counts as alive")
    hosts.replace(host)


def killed(hosts: Hosts, work: Work, host: Host) -> None:
    host_killed(work, host)  # type: ignore[arg-type]
    hosts.replace(host)


def without_ray(hosts: Hosts, work: Work, host: Host) -> None:
    raylet_killed(work, host)  # type: ignore[arg-type]
    hosts.replace(host)


def without_driver(hosts: Hosts, work: Work, host: Host) -> None:
    work.start_again()


def without_replica(hosts: Hosts, work: Work, host: Host) -> None:
    """Kills a replica of the service, wherever one is."""
    replicas = [one for node in hosts.nodes for one in node.processes("ServeReplica:videolavit")]
    random.choice(replicas).kill()


Fault = Callable[[Hosts, Work, Host], None]

FAULTS: Sequence[Fault] = (
    cut_shortly,
    cut_for_good,
    killed,
    without_ray,
    without_driver,
    without_replica,
)


# ---- service ------------------------------------------------------------------------------------------------------


class Service:
    """A service with its replicas on the nodes, and a client on the head.

    Args:
        cluster: Cluster of the service.
        folder: Folder of its files, that all hosts see.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        folder.mkdir()
        settings = {"model": "tiny", "port": PORT, "storage": str(folder / "data"), "generation": QUICK}
        replicas = {"language_model": {"min_replicas": 2}, "video_detokenizer": {"min_replicas": 1}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings | replicas))
        self._head, self._asked = cluster.head, folder / "asked.jsonl"
        self._url = f"http://127.0.0.1:{PORT}"
        self.job = cluster.start("serve", "--config", folder / "config.yaml")
        words = [sys.executable, "-c", CLIENT, self._url, str(self._asked)]
        self._client = cluster.head.start(words, folder / "client.log")
        self._since = 0.0
        self.job.wait_until(self.answers_since(0.0), "the service does not answer")
        self._since = time.time()

    def asked(self) -> list[dict[str, Any]]:
        """Requests since the service was ready: when, status, and the id of the video that was asked for."""
        if not self._asked.exists():
            return []
        lines = self._asked.read_text().splitlines(keepends=True)
        asked = [json.loads(line) for line in lines if line.endswith("\n")]
        return [one for one in asked if one["time"] > self._since]

    def answers_since(self, begin: float) -> Callable[[], bool]:
        """Condition: three requests in a row that came after some time were answered."""

        def answers() -> bool:
            last = [one["status"] for one in self.asked() if one["time"] > begin][-3:]
            return last == [200] * 3

        return answers

    def longest_gap(self) -> float:
        """Longest time between two answers, in seconds."""
        times = [one["time"] for one in self.asked() if one["status"] == 200]
        return max(after - before for before, after in itertools.pairwise(times))

    def videos(self) -> Iterator[dict[str, Any]]:
        """Videos that the service has accepted, each as it is when all have ended."""
        self._client.kill()
        for job in [one["job"] for one in self.asked() if one["job"]]:
            video: dict[str, Any] = {}

            def has_ended(job: str = job) -> bool:
                nonlocal video
                shown = self._head.output([sys.executable, "-c", GET, f"{self._url}/v1/videos/{job}"])
                video = json.loads(shown or "{}")
                return video.get("status") in ("completed", "failed")

            wait_for(has_ended, f"the video {job} does not end")
            yield video

    def stop(self) -> int:
        """Stops the service in order, and returns its exit status."""
        self.job.process.terminate()
        return self.job.wait()


# ---- what grows ---------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A process, and what it held at each reading: time, resident bytes and descriptors."""

    name: str
    readings: list[tuple[float, int, int]] = field(default_factory=list)

    def growth(self, warm: float) -> tuple[int, int] | None:
        """Bytes and descriptors more at the end than at the first reading after `warm`. None if it began later."""
        if not self.readings or self.readings[0][0] > warm:
            return None
        first = next((one for one in self.readings if one[0] >= warm), self.readings[-1])
        return self.readings[-1][1] - first[1], self.readings[-1][2] - first[2]


class Watch:
    """Memory and descriptors of the processes of some hosts that live long."""

    def __init__(self) -> None:
        self.processes: dict[psutil.Process, Watched] = {}

    def read(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            for process in host.processes():
                try:
                    name = _name(process.cmdline())
                    with process.oneshot():
                        reading = (time.monotonic(), process.memory_info().rss, process.num_fds())
                except psutil.Error:
                    continue
                if name:
                    self.processes.setdefault(process, Watched(f"{name} on {host.address}")).readings.append(reading)


def _name(words: Sequence[str]) -> str | None:
    """Name of a process that should live long, by its command line."""
    if words and words[0].startswith(("ray::Serve", "ray::Proxy")):
        return words[0].removeprefix("ray::").partition(".")[0].partition(" ")[0]
    known = ("gcs_server", "raylet/raylet", "dashboard/agent.py", "runtime_env/agent/main.py", "jobs.serve")
    return next((one for one in known if any(one in word for word in words[:4])), None)
