"""Two trainings in one folder, and what is left of the lease of a process that was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from videolavit.training.lease import FolderInUse, leased

HOLD = """
import sys, time
from pathlib import Path
from videolavit.training.lease import leased
with leased(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_has_one_training_at_a_time_and_a_crash_leaves_it_free(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        refused = pytest.raises(FolderInUse, match=rf"another training writes to .* \(process {other.pid} on ")
        with refused, leased(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with leased(tmp_path):
        (tmp_path / "metrics.jsonl").write_text("")
    with leased(tmp_path):
        pass


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with leased(tmp_path):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
