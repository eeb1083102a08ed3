"""Real parts for the tests: a Ray head, an S3 server, the job as its own process, a small corpus."""

import contextlib
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from botocore.exceptions import BotoCoreError

from videolavit.media import MediaError, write_mp4
from videolavit.sandbox.call import IsolatedFunction

# Set before PyTorch is loaded, for this process and all that it starts: they share the cores, and threads of PyTorch
# wait for each other by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_NICENESS = "RAY_worker_niceness"
# Ray's workers step back for all other processes: beside two that compute they get a twentieth of a core.
os.environ[_NICENESS] = "0"

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
START_LIMIT, COMMAND_LIMIT = 420.0, 480.0
"""Longest times that a start and a command may take, in seconds. A service starts in 25 s alone, and took 165 s on two
cores that a second Ray and its workers shared."""

_STARTED = time.monotonic()

Isolate = Callable[[Callable[..., Any]], "IsolatedFunction[*tuple[Any, ...], Any]"]
Job = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-pack", type=Path, default=SHARED / "parity", help="folder of reference numbers")
    parser.addoption("--parity-videos", type=Path, default=SHARED / "corpus" / "videos", help="the videos they are of")
    parser.addoption("--manifests", type=Path, default=SHARED / "reference" / "manifests", help="published tensors")
    parser.addoption("--minutes", type=float, default=math.inf, help="tests that would begin later are skipped")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends a run whose time is limited with what was seen, instead of with nothing."""
    if time.monotonic() - _STARTED > 60 * item.config.getoption("minutes"):
        pytest.skip("the time of --minutes is over")


CLUSTER_FIXTURES = {"ray_head", "run_job", "s3", "service", "busy", "browser", "postgresql"}
"""Fixtures that start a command, a server or a browser. Tests that use one are marked `cluster`."""

CLUSTER_PATHS = (
    "tests/cluster/",
    "tests/pipelines/",
    "tests/serve/test_launch.py",
    "tests/serve/test_leases.py",
    "tests/serve/test_limits.py",
    "tests/serve/test_load.py",
    "tests/serve/test_stop.py",
    "tests/test_examples.py",
)
"""Folders and files of tests that start Ray or services themselves. They are marked `cluster` too."""

NETWORK_PATHS = (
    "tests/evaluation/test_shapes.py",
    "tests/generation/test_animate.py",
    "tests/generation/test_generate.py",
    "tests/generation/test_library.py",
    "tests/generation/test_reconstruct.py",
    "tests/generation/test_runtime.py",
    "tests/models/test_assembly.py",
    "tests/models/test_checkpoint",
    "tests/models/test_keyframe_detokenizer.py",
    "tests/models/test_video_detokenizer.py",
    "tests/parity/test_modules.py",
    "tests/training/test_assembled.py",
    "tests/training/test_detokenizer",
    "tests/training/test_loader.py",
    "tests/training/test_language_model.py",
    "tests/training/test_library.py",
    "tests/training/test_ranks.py",
    "tests/training/test_tokenizers.py",
    "tests/training/test_trainer.py",
)
"""Beginnings of the paths of tests that run or train networks for long. They are marked `network`."""

SERVICE_FILES = {
    f"tests/serve/test_{name}.py" for name in ("api", "clients", "limits", "operations", "schema", "videos")
}
"""Files of tests that share a service, which takes long to start."""

SLOW_PATHS = (
    "tests/cluster/",  # hosts that are cut off and killed
    "tests/jobs/test_train.py::test_a_workers",  # trainings under Ray
    "tests/jobs/test_train.py::test_samples_come",
    "tests/jobs/test_train.py::test_two_workers",
    "tests/jobs/test_train.py::test_workers",
    "tests/media/test_hostile.py",  # fuzzing
    "tests/evaluation/test_shapes.py",  # whole products, from nothing
    "tests/pipelines/test_demo.py",
    "tests/pipelines/test_proof.py",
    "tests/test_examples.py",
    "tests/deploy/test_image_steps.py",  # packages installed from registries
    "tests/deploy/test_kubernetes_jobs.py",
    "tests/models/test_backbones.py::test_a_model_is_assembled_of_a_gguf",  # 135 million parameters
    "tests/models/test_backbones.py::test_a_real_model",
    "tests/models/test_loss.py::test_memory",  # gigabytes of logits
    "tests/test_fuzz.py",
    "tests/test_wheel.py",
    "tests/pipelines/test_drain.py",  # a cluster of its own
    "tests/pipelines/test_faults.py",  # storages that go away for a while
    "tests/pipelines/test_kill.py",  # processes killed at many moments
    "tests/pipelines/test_hanging_worker.py",
    "tests/pipelines/test_resume_old_run.py",
    "tests/pipelines/test_s3_traffic.py",
    "tests/pipelines/test_tokenize_kill.py",
    "tests/serve/test_launch.py",  # services of their own
    "tests/serve/test_leases.py",
    "tests/serve/test_load.py",
    "tests/serve/test_page",  # a browser
    "tests/serve/test_private_texts.py",
    "tests/serve/test_same_program.py",
    "tests/serve/test_stock_clients.py",  # packages installed from registries
    "tests/serve/test_stop.py",
    "tests/test_cluster.py",
    "tests/training/test_detokenizer_ranks.py",
    "tests/training/test_library.py::test_a_program_trains_and_nothing_is_printed[1]",  # under Ray
)
"""Beginnings of the paths of tests that are slow by nature. They are marked `slow`, and run in `make test-slow`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sets the markers that the targets of the Makefile select by, and puts the longest tests first.

    Two processes then share the short ones at the end, instead of one waiting for the other.
    """
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        names = {*getattr(item, "fixturenames", ()), *(value for value in values if isinstance(value, str))}
        if CLUSTER_FIXTURES & names or item.nodeid.startswith(CLUSTER_PATHS):
            item.add_marker("cluster")
        if item.nodeid.startswith(NETWORK_PATHS):
            item.add_marker("network")
        if item.nodeid.startswith(SLOW_PATHS):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file in one process, and those of the service, so that each fixture is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "service" if file in SERVICE_FILES else file

    return ByFile(config, log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, limit: float = START_LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {limit:g} s")
        time.sleep(0.05)


def command(*arguments: Any) -> list[str]:
    """The command line of a job, as a shell or `ray job submit` would run it."""
    name, *rest = map(str, arguments)
    return [sys.executable, "-m", f"jobs.{name}", *rest]


def run_silently(code: str, *arguments: Any) -> None:
    """Runs Python code in a process of its own, which must end well and print nothing. `sys.argv[1:]` are arguments."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="session")
def run_job() -> Job:
    """Runs `python -m jobs.NAME ARGUMENTS` and returns the finished process."""

    def run(*arguments: Any, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT,
        )

    return run


def environment_without_ray() -> dict[str, str]:
    """Environment without the address of a cluster that other tests may have set."""
    return {name: value for name, value in os.environ.items() if name == _NICENESS or not name.startswith("RAY_")}


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a local Ray head with two cores and a job server (`RAY_API_SERVER_ADDRESS`), shared by all tests.

    What Prometheus reads is at `TESTS_RAY_METRICS`.
    """
    port, dashboard, metrics, agent = (free_port() for _ in range(4))
    # Clusters authenticate their drivers; the jobs inherit the token.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    log = tmp_path_factory.mktemp("ray-log") / "log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                "start",
                "--head",
                "--block",
                f"--port={port}",
                "--num-cpus=2",
                "--include-dashboard=true",
                f"--dashboard-port={dashboard}",
                f"--metrics-export-port={metrics}",
                # at its default, a head would hand jobs to the agent of another head on this machine
                f"--dashboard-agent-listen-port={agent}",
                "--object-store-memory=400000000",
                "--disable-usage-stats",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            # Submitted jobs find `python` as the head does.
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
    api = f"http://127.0.0.1:{dashboard}"
    wait_for(lambda: head.poll() is not None or _answers(f"{api}/api/version"), "Ray is not up")
    assert head.poll() is None, log.read_text()
    os.environ["RAY_API_SERVER_ADDRESS"] = api
    os.environ["TESTS_RAY_METRICS"] = f"http://127.0.0.1:{metrics}/metrics"
    os.environ["TESTS_RAY_HEAD"] = str(head.pid)
    yield f"127.0.0.1:{port}"
    for process in [*psutil.Process(head.pid).children(recursive=True), head]:  # an orderly stop takes half a minute
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker may end in between
            process.kill()
    head.wait(START_LIMIT)


@pytest.fixture(scope="session")
def on_head(ray_head: str, run_job: Job) -> Job:
    """`run_job` on the shared Ray head, which starts much faster than a Ray of its own."""

    def run(*arguments: Any, **environment: str) -> "subprocess.CompletedProcess[str]":
        return run_job(*arguments, RAY_ADDRESS=ray_head, **environment)

    return run


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables for a real S3 server on loopback that has a bucket `bucket`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@contextlib.contextmanager
def s3_server(folder: Path, address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """A real S3 server with a bucket `bucket`, as environment variables.

    Args:
        folder: Folder of its files, removed at the end.
        address: Address of this machine that it listens on.
    """
    identities = folder / "identities.json"
    identities.write_text(
        '{"identities": [{"name": "tests", "credentials": [{"accessKey": "tests", "secretKey": "tests-secret"}],'
        ' "actions": ["Admin", "Read", "Write", "List"]}]}'
    )
    port = free_port()
    weed = Path(sys.executable).with_name("weed")
    ports = {name: free_port() for name in ("master", "volume", "filer")}
    grpc = {f"{name}.port.grpc": free_port() for name in ports}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                str(weed),
                "server",
                f"-dir={folder}",
                f"-ip={address}",
                f"-ip.bind={address}",
                "-s3",
                f"-s3.port={port}",
                f"-s3.config={identities}",
                *(f"-{name}.port={number}" for name, number in ports.items()),
                *(f"-{name}={number}" for name, number in grpc.items()),
                f"-s3.port.grpc={free_port()}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-master.volumeSizeLimitMB=128",
                "-volume.max=20",
                "-volume.minFreeSpace=64MiB",  # by default it refuses to write where 1 % of a large disk is left
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    environment = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        wait_for(lambda: server.poll() is not None or _answers(environment["AWS_ENDPOINT_URL"]), "S3 is not up")
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        _make_bucket(environment)
        yield environment
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code in (200, 401, 403)
    except requests.RequestException:
        return False


def s3_filesystem(environment: dict[str, str]) -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        skip_instance_cache=True,
    )


def _make_bucket(environment: dict[str, str]) -> None:
    def made() -> bool:
        try:
            fs = s3_filesystem(environment)
            fs.makedirs("bucket", exist_ok=True)
            fs.pipe_file("bucket/.ready", b"a server that cannot write is not up")
        except (OSError, BotoCoreError):  # the volume server joins a moment after the gateway answers
            return False
        return True

    wait_for(made, "no bucket that can be written to")


def moving_texture(frames: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """A textured picture that drifts, as uint8 [height, width, 3] frames."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    dy, dx = rng.choice([-2, -1, 1, 2], 2)
    for index in range(frames):
        yield np.roll(texture, (index * dy, index * dx), (0, 1))[:height, :width]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six short videos, one of them 20 s long."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(6):
        seconds = 20 if index == 5 else 2 + index
        write_mp4(moving_texture(12 * seconds, 96, 128, index), folder / f"video{index}.mp4", 12)
    return folder


@pytest.fixture
def isolate() -> Iterator[Isolate]:
    """Isolates functions, and ends their processes when the test ends."""
    made: list[IsolatedFunction[*tuple[Any, ...], Any]] = []

    def isolate(function: Callable[..., Any]) -> IsolatedFunction[*tuple[Any, ...], Any]:
        made.append(IsolatedFunction(function, errors=(MediaError,)))
        return made[-1]

    yield isolate
    for function in made:
        function.close()
