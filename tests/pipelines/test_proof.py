"""The proof from its start to its report, at its smallest, and the sheet of the overfitting check."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import proof as job
from pipelines import proof_corpus
from pipelines.proof import ProofSizes, memorise, prove
from tests.conftest import moving_texture, run_silently
from tests.training.test_sources import write_run
from videolavit.generation.settings import GenerateSettings
from videolavit.media import write_mp4
from videolavit.models.config import OutputSizes
from videolavit.models.folder import ModelFolder
from videolavit.progress import Progress
from videolavit.records.files import InputError

SMALLEST = ProofSizes(train_videos=4, held_out_videos=2, prompts=1, max_steps=2)


def test_a_small_proof_runs_to_its_end_and_prints_nothing(
    ray_head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
import sys
from pipelines.proof import prove
from tests.pipelines.test_proof import SMALLEST
seen = []
summary = prove(sys.argv[1], SMALLEST, seen.append)
assert len(summary.criteria) == 20 and summary.report.is_file() and not summary.is_reached
assert set(summary.minutes) == {one.stage for one in seen}
"""
    output = tmp_path / "proof"
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    run_silently(code, output)
    reports: list[Progress] = []
    again = prove(output, SMALLEST, reports.append)
    assert {one.message for one in reports} == {"done before"}
    assert all(0 < minutes < 2 for minutes in again.minutes.values())
    assert {"language_model", "understanding/language_model", "video_detokenizer/unet", "motion_tokenizer"} <= set(
        ModelFolder(again.model).trained_parts
    )
    for part, last in {  # the conditions are trained twice, beside the language model in between
        "keyframe_detokenizer/conditions": "keyframe-detokenizer",
        "video_detokenizer/unet": "video-detokenizer",
        "understanding/language_model": "chat",
    }.items():
        made = ModelFolder(output / last / "model")
        assert ModelFolder(output / "joined").digest(part) == made.digest(part)
    with pytest.raises(SystemExit) as end:
        job.main(["--output", str(output)])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "missed" in printed
    assert str(output / "report.html") in printed


def test_mistakes_are_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        job.main(["--corpus", str(tmp_path), "--output", str(tmp_path / "proof")])
    assert end.value.code == 2
    assert "captions.jsonl is missing" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(SystemExit) as end:
        job.main(["--output", str(tmp_path / "proof"), "--sizes.train-videos", "0"])
    assert end.value.code == 2
    assert "train_videos must be at least 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no recipe 'huge'"):
        ProofSizes(recipe="huge")
    with pytest.raises(InputError, match="s3://bucket/proof is no local folder"):
        prove("s3://bucket/proof")
    (tmp_path / "captions.jsonl").write_text("")
    (tmp_path / "other" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="holds a proof"):
        memorise(tmp_path / "other", tmp_path)
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "held-out-clips").symlink_to("train-clips")
    with pytest.raises(InputError, match="holds an overfitting check"):
        prove(tmp_path / "check")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "check", "other"]


def test_captions_are_compared_with_their_own_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = GenerateSettings(keyframe_steps=1, video_steps=1, max_visual=2)
    monkeypatch.setattr(proof_corpus, "GENERATION", few)
    side = 16
    sizes = OutputSizes(keyframe_width=side, keyframe_height=side, video_width=side, video_height=side)
    monkeypatch.setattr(ModelFolder, "sizes", sizes)
    files = [tmp_path / f"{name}.mp4" for name in "ab"]
    for seed, file in enumerate(files):
        write_mp4(moving_texture(15 + 30 * seed, 48, 64, seed), file, 6)  # a short clip; a whole one and a short one
    write_run(tmp_path / "train-clips", [{"source": str(file)} for file in files])
    ModelFolder("tiny").save(tmp_path / "model")
    (tmp_path / "language-model").mkdir()
    (tmp_path / "language-model" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 0.5}\n')

    proof_corpus.compare(tmp_path)

    found = proof_corpus.read_comparison(tmp_path)
    assert [clip.caption for clip in found.clips] == ["caption of a", "caption of b"]
    assert found.loss == 0.5
    assert found.psnr == pytest.approx(np.mean([clip.psnr for clip in found.clips]))
    assert all(0 < clip.psnr < 30 for clip in found.clips)
    assert Image.open(tmp_path / "side-by-side.png").width > 800
    assert "Overfitting check" in (tmp_path / "report.html").read_text()
