"""Scenes over several hosts: corpora on a shared folder and on S3, runs of both pipelines, and faults for them."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import runs
from tests.cluster.hosts import Cluster, Host, Job, network
from tests.conftest import moving_texture, s3_filesystem, s3_server, wait_for
from tests.tokens import picture, write_model, write_tar
from videolavit.media import write_mp4

SAMPLES = {"decompose": 16, "tokenize": 800}
"""Samples of each pipeline's corpus: 16 shards of a video, 8 of a hundred pictures."""

FOLDERS = {"decompose": "clips", "tokenize": "tokens"}
MAKERS = {"decompose": "ShardMaker", "tokenize": "Preparer"}
"""Word in the titles of the processes that decode."""

SHORT_CUT = 20.0
"""Seconds of a cut that ends before the head takes the host for dead."""


@dataclass(frozen=True)
class Scene:
    """A cluster, and corpora of both pipelines.

    Args:
        folder: Folder that all hosts see.
        s3: Environment variables for S3.
        expected: Rows of the undisturbed run of each pipeline.
    """

    cluster: Cluster
    folder: Path
    s3: dict[str, str]
    expected: dict[str, Counter[str]] = field(default_factory=dict)

    def run(self, pipeline: str, storage: str, name: str, *more: str) -> "Run":
        """Starts a run of a pipeline, with input and output on a storage: `shared` or `s3`.

        Args:
            name: Name of the output.
            more: Further words of the command.
        """
        place = str(self.folder) if storage == "shared" else "s3://bucket"
        words = [pipeline, "--input", f"{place}/{pipeline}", "--output", f"{place}/{name}", *more]
        if pipeline == "tokenize":
            words += ["--model", str(self.folder / "model")]
        options = {} if storage == "shared" else s3_options(self.s3)
        return Run(self.cluster, f"{place}/{name}", options, words, self.cluster.start(*words), pipeline)


@dataclass
class Launched:
    """A command that works on a cluster.

    Args:
        output: Address of its folder.
        options: Options with which the storage of that folder is read.
        words: Command line.
        job: Process of the command.
    """

    cluster: Cluster
    output: str
    options: dict[str, str]
    words: list[str]
    job: Job

    def start_again(self) -> None:
        """Kills the driver and starts the same command again."""
        self.job.kill()
        self.job = self.cluster.start(*self.words)


@dataclass
class Run(Launched):
    """A data run on a cluster."""

    pipeline: str

    def shards(self) -> list[str]:
        return runs.shards(self.output, FOLDERS[self.pipeline], **self.options)

    def has_begun(self) -> bool:
        """True if two shards are done, so that more are in the making."""
        return len(self.shards()) >= 2

    def is_at_work(self, host: Host) -> bool:
        """True if a worker of the run is on a host."""
        return bool(host.processes(MAKERS[self.pipeline]))

    def content(self) -> Counter[str]:
        """Rows without the addresses of their sources, and how often each is there. Fails if a sample appears twice."""
        folder = FOLDERS[self.pipeline]
        assert len(runs.samples(self.output, folder, **self.options)) == SAMPLES[self.pipeline]
        assert runs.run(self.output, **self.options)["complete"]
        return Counter(
            repr({name: value for name, value in row.items() if name not in ("sample_id", "source")})
            for row in runs.rows(self.output, folder, **self.options)
        )


def s3_options(environment: dict[str, str]) -> dict[str, str]:
    """Options with which S3 is read."""
    return {
        "key": environment["AWS_ACCESS_KEY_ID"],
        "secret": environment["AWS_SECRET_ACCESS_KEY"],
        "endpoint_url": environment["AWS_ENDPOINT_URL"],
    }


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """Makes a cluster without nodes, the corpora, and an undisturbed run of each pipeline on a shared folder."""
    _write_corpora(folder)
    with network() as hosts, s3_server(folder.parent / "s3", hosts.address) as s3:
        fs = s3_filesystem(s3)
        for name in SAMPLES:
            fs.put(f"{folder}/{name}", f"bucket/{name}", recursive=True)
        hosts.environment |= s3
        made = Scene(Cluster(hosts), folder, s3)
        workers = [made.cluster.add() for _ in range(2)]
        for pipeline in SAMPLES:
            run = made.run(pipeline, "shared", f"undisturbed-{pipeline}")
            assert run.job.wait() == 0, run.job.shown
            made.expected[pipeline] = run.content()
        for host in workers:
            host.kill()
        wait_for(lambda: len(made.cluster.alive()) == 1, "the head does not see that its nodes have ended")
        yield made


def _write_corpora(folder: Path) -> None:
    (folder / "decompose").mkdir(parents=True)
    (folder.parent / "s3").mkdir()
    for index in range(SAMPLES["decompose"]):
        file = folder / "decompose" / f"{index:02d}.mp4"
        if index < 4:
            write_mp4(moving_texture(24 * 20, 288, 352, index), file, 24)
        else:
            os.link(folder / "decompose" / f"{index % 4:02d}.mp4", file)
    different = [picture(index, (512, 512)) for index in range(10)]
    (folder / "tokenize").mkdir()
    pictures = {f"{index:04d}.jpg": different[index % 10] for index in range(SAMPLES["tokenize"])}
    write_tar(folder / "tokenize" / "pictures.tar", pictures)
    write_model(folder / "model")


# ---- faults -------------------------------------------------------------------------------------------------------


def host_killed(run: Run, host: Host) -> None:
    host.kill()


def raylet_killed(run: Run, host: Host) -> None:
    """Kills Ray's own process of a host; its workers end with it."""
    for process in host.processes("raylet/raylet"):
        process.kill()


def cut_shortly(run: Run, host: Host) -> None:
    """Cuts a host off for some time, in which the other one goes on."""
    before, until = len(run.shards()), time.monotonic() + SHORT_CUT
    host.cut()
    if run.pipeline == "decompose":  # both hosts may work on one shard of tokens
        wait_for(lambda: len(run.shards()) > before, "the other host makes no shard", limit=50)
    time.sleep(max(until - time.monotonic(), 0))
    host.heal()


def cut_for_good(run: Run, host: Host) -> None:
    host.cut()


def driver_killed(run: Run, host: Host) -> None:
    run.start_again()
