"""Imports and exports as library calls: typed summaries and progress, and nothing on stdout or stderr."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.models.published_folder import make_published
from videolavit.models.checkpoint import (
    CheckpointSummary,
    ExportSettings,
    ImportSettings,
    PartSummary,
    export_checkpoint,
    import_checkpoint,
)
from videolavit.models.folder import ModelFolder
from videolavit.models.parts import PARTS
from videolavit.progress import Progress

CHILD = """
import pickle, sys
from pathlib import Path
from videolavit.models import checkpoint

reports = []
source, target, result, function, settings = pickle.loads(bytes.fromhex(sys.argv[1]))
summary = getattr(checkpoint, function)(source, target, settings, reports.append)
Path(result).write_bytes(pickle.dumps((summary, reports)))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published") / "Video-LaVIT-v1")


def call_in_child(source: Path, target: Path, function: Any, settings: Any) -> tuple[CheckpointSummary, list[Progress]]:
    """Calls a function in a process of its own, which must print nothing."""
    result = target.with_suffix(".pickle")
    argument = pickle.dumps((source, target, result, function.__name__, settings)).hex()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, argument], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    summary, reports = pickle.loads(result.read_bytes())
    return summary, reports


def check_reports(reports: list[Progress], stage: str, last: str) -> None:
    assert {report.stage for report in reports} == {stage}
    assert reports[0].message == "reading names and shapes"
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert 0 < reports[-1].done <= reports[-1].total
    assert reports[-1].message.startswith(last)


def test_import_and_export(published: Path, tmp_path: Path) -> None:
    model, exported = tmp_path / "model", tmp_path / "exported"
    summary, reports = call_in_child(published, model, import_checkpoint, ImportSettings(preset="tiny"))
    check_reports(reports, "import", "motion_tokenizer/model.safetensors, 0.001 GB")
    assert summary.folder == model
    assert [part.name for part in summary.parts] == list(PARTS)
    by_name = {part.name: part for part in summary.parts}
    tensors = ModelFolder(model).load("motion_tokenizer", dtype=None).state_dict().values()
    parameters = sum(tensor.numel() for tensor in tensors)
    assert by_name["motion_tokenizer"] == PartSummary(
        "motion_tokenizer", len(tensors), parameters, 4 * parameters, ("float32",)
    )
    assert by_name["language_model"].types == ("bfloat16",)
    assert by_name["video_detokenizer/scheduler"] == PartSummary("video_detokenizer/scheduler", 0, 0, 0, ())
    assert any("video_3d_unet.bin" in remark for remark in summary.remarks)

    back, reports = call_in_child(model, exported, export_checkpoint, ExportSettings())
    check_reports(reports, "export", "language_model_sft/pytorch_model.bin")
    assert back == CheckpointSummary(exported, summary.parts)
    assert (back.tensors, back.nbytes) == (summary.tensors, summary.nbytes)


def test_progress_can_stop_an_import(published: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done:
            raise InterruptedError

    settings = ImportSettings(preset="tiny", only=("motion_tokenizer",))
    with pytest.raises(InterruptedError):
        import_checkpoint(published, tmp_path / "model", settings, stop)
    assert list(tmp_path.iterdir()) == []
