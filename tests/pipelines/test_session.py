"""`ray_session`, in processes of their own: this one must not be connected to Ray."""

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Job, environment_without_ray, free_port

SESSIONS = """
import os
from pathlib import Path

os.environ["RAY_grpc_client_keepalive_timeout_ms"] = "45000"  # of a user who knows better
import ray
from pipelines.session import ray_session
from tests.process_state import unchanged

def keepalive():
    return ray._config.grpc_client_keepalive_time_ms(), ray._config.grpc_client_keepalive_timeout_ms()

seen = []
with unchanged():
    for _ in range(2):
        with ray_session(seen.append):
            assert ray.is_initialized() and [progress.stage for progress in seen] == ["ray"]
            with ray_session(seen.append):
                assert ray.get(ray.remote(lambda: 1).remote()) == 1 and len(seen) == 1
            logs = Path(ray.get(ray.remote(lambda: os.readlink("/proc/self/fd/1")).remote()))  # a worker's
            private = [folder for folder in logs.parents if folder.name.startswith("ray-")]
            assert [folder.stat().st_mode & 0o777 for folder in private] == [0o700], logs
            assert ray.is_initialized()
            assert keepalive() == ray.get(ray.remote(keepalive).remote()) == (70_000, 45_000)
        assert not ray.is_initialized() and not private[0].exists()
        assert keepalive() == (300_000, 45_000)
        seen.clear()
"""

DYING_WORKER = """
import contextlib, os, time
import ray
from pipelines.session import ray_session

seen = []
with ray_session(seen.append):
    with contextlib.suppress(ray.exceptions.WorkerCrashedError):
        ray.get(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
    deadline = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
assert len(seen) == 2 and seen[1].stage == "ray", seen
assert seen[1].message.startswith("A worker died") and len(seen[1].message) < 120, seen[1]
"""

REFUSED = """
from pipelines.session import ray_session
from tests.process_state import unchanged
from videolavit.ray_setup import RayUnavailable

with unchanged():
    try:
        with ray_session():
            raise AssertionError("Ray started")
    except RayUnavailable as error:
        message = str(error)
print(message)
"""

AMONG_FILES_OF_A_STRANGER = """
import os, sys
sys.path = [entry for entry in sys.path if entry]  # as of an installed command
import ray
from pipelines.session import ray_session

def look():
    import colorsys
    return sys.path, colorsys.__file__

here = os.getcwd()
with ray_session():
    path, file = ray.get(ray.remote(look).remote())
assert os.getcwd() == here
assert here not in path, path
assert os.path.dirname(file) == os.path.dirname(os.__file__), file
"""

ON_LOOPBACK = """
import ipaddress
import psutil, ray
from pipelines.session import ray_session

with ray_session():
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        (process.name(), place.laddr)
        for process in processes
        for place in process.net_connections("inet")
        if place.status == psutil.CONN_LISTEN
    }
open_to_others = []
for name, (host, port) in listening:
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_loopback:
        open_to_others.append((name, host, port))
assert len(listening) > 3 and not open_to_others, open_to_others
"""

IN_A_FOLDER_THAT_IS_GONE = """
import os, sys, tempfile
from pipelines.session import ray_session
from videolavit.ray_setup import RayUnavailable

with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
try:
    with ray_session():
        raise AssertionError("Ray started")
except RayUnavailable as error:
    print(error)
"""

USER = 54321
"""User id that has no entry in the user database."""

READ_EVERYTHING = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
"""Options of setpriv for a user who may read the interpreter, wherever it is installed."""


def run(code: str, *before: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs code without the variables of the tests' Ray, by a command such as unshare."""
    kept = environment_without_ray()
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=kept | environment, timeout=120)


def can_unshare(*options: str) -> bool:
    """True where tests may make namespaces: as root, outside of most containers."""
    command = shutil.which("unshare")
    return command is not None and subprocess.run([command, *options, "true"], capture_output=True).returncode == 0


def test_a_ray_of_this_process_listens_on_loopback_alone() -> None:
    done = run(ON_LOOPBACK)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("joins", [True, False], ids=["of a cluster", "of its own"])
def test_workers_take_no_code_from_the_working_folder(ray_head: str, tmp_path: Path, joins: bool) -> None:
    """A command that is started among videos of a stranger, with a module beside them."""
    (tmp_path / "colorsys.py").write_text("raise SystemExit('a stranger runs')")
    kept = environment_without_ray()
    environment = (os.environ | {"RAY_ADDRESS": ray_head}) if joins else kept
    done = subprocess.run(
        [sys.executable, "-c", AMONG_FILES_OF_A_STRANGER],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join((str(ROOT / "platform"), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_a_session_starts_ray_and_leaves_the_process_as_it_was() -> None:
    done = run(SESSIONS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_death_of_a_worker_is_reported_and_not_printed() -> None:
    done = run(DYING_WORKER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(os.getuid() != 0 or not can_unshare("--mount"), reason="only root can make such surroundings")
def test_ray_starts_where_a_container_gives_it_little(tmp_path: Path) -> None:
    """A user without a name or a home, temporary files at a long path, and shared memory that cannot be written."""
    long = tmp_path / ("long" * 25)
    long.mkdir()
    long.chmod(0o777)
    for folder in long.relative_to(tempfile.gettempdir()).parents:
        (Path(tempfile.gettempdir()) / folder).chmod(0o777)
    user = ("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", *READ_EVERYTHING)
    read_only = 'mount -o remount,bind,ro /dev/shm && exec "$@"'
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TMPDIR": str(long)}
    bare = ("env", "-i", *(f"{name}={value}" for name, value in environment.items()), "HOME=/nowhere")
    done = run(SESSIONS, "unshare", "--mount", "sh", "-c", read_only, "sh", *user, *bare)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(long.iterdir())


@pytest.mark.skipif(not can_unshare("--net"), reason="only root can take the network away")
def test_a_machine_without_a_network_is_refused() -> None:
    done = run(REFUSED, "unshare", "--net")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no connection to 127.0.0.1" in done.stdout


@pytest.mark.skipif(not can_unshare("--mount"), reason="only root can mount")
def test_a_machine_without_a_place_for_sockets_is_refused(tmp_path: Path) -> None:
    """Temporary files can be written, at a path that is too long."""
    long = tmp_path / ("long" * 25)
    long.mkdir()
    mounts = [f"mount -t tmpfs -o ro tmpfs {place}" for place in ("/var/tmp", "/dev/shm")]
    mounts += ["mount --bind /tmp /tmp", "mount -o remount,bind,ro /tmp"]  # the interpreter may lie there
    script = " && ".join([f"mount --bind {long} /mnt", *mounts, 'exec "$@"'])
    inside = "/mnt/" + "long" * 25
    (long / ("long" * 25)).mkdir()
    done = run(REFUSED, "unshare", "--mount", "sh", "-c", script, "sh", TMPDIR=inside)
    assert done.returncode == 0, done.stderr
    assert f"none of {inside}, /tmp, /var/tmp, /dev/shm" in done.stdout
    assert "name such a folder in TMPDIR" in done.stdout


def test_a_low_limit_of_open_files_is_refused() -> None:
    done = run(REFUSED, "sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert "a process may open 64 files; allow more with `ulimit -n 4096`" in done.stdout


def test_a_working_directory_that_is_gone_is_named() -> None:
    done = run(IN_A_FOLDER_THAT_IS_GONE)
    assert done.stdout == "the working directory is gone; change to one that exists\n"
    assert done.stderr == ""


@contextlib.contextmanager
def web_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    yield f"127.0.0.1:{free_port()}"


@contextlib.contextmanager
def no_address() -> Iterator[str]:
    yield "nothing"


@pytest.mark.parametrize(
    ("where", "reason"), [(nobody, ""), (web_server, ""), (no_address, " (Invalid address format: nothing)")]
)
def test_a_cluster_that_does_not_answer_is_named(
    where: Callable[[], contextlib.AbstractContextManager[str]], reason: str
) -> None:
    with where() as address:
        done = run(REFUSED, RAY_ADDRESS=address)
    assert (done.returncode, done.stderr) == (0, "")
    remedy = "unset it to start Ray on this machine"
    assert done.stdout == f"no Ray cluster answers at RAY_ADDRESS={address}{reason}; {remedy}\n"


@pytest.mark.parametrize("command", ["decompose", "tokenize", "train", "serve"])
def test_commands_say_so_in_a_line(command: str, run_job: Job, small_corpus: Path, tmp_path: Path) -> None:
    video = next(small_corpus.glob("*.mp4"))
    arguments = {
        "decompose": ("--input", video, "--output", tmp_path / "run"),
        "tokenize": ("--input", video, "--output", tmp_path / "run", "--model", "tiny"),
        "train": ("vae", "--model", "tiny", "--input", video, "--output", tmp_path / "run", "--workers", 1),
        "serve": ("--model", "tiny", "--storage", tmp_path / "data", "--port", free_port()),
    }
    done = run_job(command, *arguments[command], RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, done.stdout, len(errors)) == (1, "", 1), done.stderr
    assert "no Ray cluster answers at RAY_ADDRESS=" in errors[0]
    assert "Traceback" not in done.stderr
