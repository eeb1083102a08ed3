"""The pool of actors that read headers: one for all parts of a planning, whoever dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COMMAND_LIMIT, ROOT, moving_texture
from videolavit.media import write_mp4

BEGIN = """
import os, signal, sys, threading
import psutil
from pipelines.common import WorkerSettings
from pipelines.headers import HeaderReaders, PlanningIncomplete
from pipelines.planning import Planner
from pipelines.session import ray_session
from tests.records.kinds.reading import SETTINGS
from tests.records.listed import STORAGE, list_videos
from videolavit.progress import ignore_progress

def actors():
    found = set()
    for one in psutil.Process(int(os.environ["TESTS_RAY_HEAD"])).children(recursive=True):
        try:
            if one.cmdline()[0].startswith("ray::HeaderReader"):
                found.add(one.pid)
        except (IndexError, psutil.Error):
            continue
    return found

sources = list_videos(sys.argv[1])
assert sources.num_rows == 64
"""

ONE_POOL = """
def names(tables):
    return sorted(name for table in tables for name in table["source"].to_pylist())

with ray_session():
    readers = HeaderReaders(SETTINGS, STORAGE, WorkerSettings(workers=1))
    expected = sorted(sources["source"].to_pylist())
    assert names(readers.read(sources, [])) == expected
    pool = actors()
    assert len(pool) == 1
    assert len(list(readers.read(sources.slice(0, 20), []))) == 2
    assert actors() == pool
    parts = readers.read(sources, [])
    some = [next(parts)]
    for pid in pool:
        os.kill(pid, signal.SIGKILL)
    assert names([*some, *parts]) == expected
    assert actors().isdisjoint(pool)
    readers.close()
"""

ALL_DIE = """
is_over = threading.Event()

def kill_all():
    while not is_over.wait(0.02):
        for pid in actors():
            os.kill(pid, signal.SIGKILL)

killer = threading.Thread(target=kill_all)
with ray_session(), Planner(None, None, SETTINGS, WorkerSettings(workers=1), STORAGE, ignore_progress) as planner:
    killer.start()
    try:
        planner.read(sources)
    except PlanningIncomplete as error:
        assert str(error).startswith(("planning lost", "no worker that reads headers can start")), error
        assert "Actor" in str(error), error  # the type of Ray's error says what became of the workers
    else:
        raise AssertionError("nothing was lost")
    finally:
        is_over.set()
        killer.join()
"""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    write_mp4(moving_texture(12, 64, 96, 0), tmp_path / "00.mp4", 12)
    for number in range(1, 64):
        (tmp_path / f"{number:02d}.mp4").write_bytes((tmp_path / "00.mp4").read_bytes())
    return tmp_path


@pytest.mark.parametrize("code", [ONE_POOL, ALL_DIE], ids=["one pool", "all die"])
def test_readers_of_headers(code: str, ray_head: str, videos: Path) -> None:
    words = [sys.executable, "-c", BEGIN + code, str(videos)]
    environment = os.environ | {"RAY_ADDRESS": ray_head}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_LIMIT, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
