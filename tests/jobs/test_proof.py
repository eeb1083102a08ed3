"""The proof's stages, and the sheet of the overfitting check; what it proves takes an hour and is no test."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import proof
from jobs.proof import StageFailed, Stages
from pipelines import proof_corpus
from tests.conftest import moving_texture
from tests.training.test_sources import write_run
from videolavit.generation.settings import GenerateSettings
from videolavit.media import write_mp4
from videolavit.models.config import OutputSizes
from videolavit.models.folder import ModelFolder


def test_a_stage_runs_once(tmp_path: Path) -> None:
    words = ("synth", "--output", tmp_path / "corpus", "--videos", 1, "--seconds", 1, "--fps", 6)
    Stages(tmp_path).run("corpus", *words)
    manifest = tmp_path / "corpus" / "manifest.jsonl"
    manifest.unlink()
    again = Stages(tmp_path)
    again.run("corpus", *words)
    assert not manifest.exists()
    assert set(again.minutes) == {"corpus"}
    assert again.minutes["corpus"] < 1


def test_stages_side_by_side_count_once(tmp_path: Path) -> None:
    times = {"a": [(0, 120), (120, 600)], "b": [(300, 900)], "c": [(360, 420)], "later": [(1200, 1260)]}
    (tmp_path / "stages.json").write_text(json.dumps({"done": list(times), "times": times}))
    stages = Stages(tmp_path)
    assert stages.minutes == {"a": 10, "b": 10, "c": 1, "later": 1}
    assert stages.total == 16
    with stages.timed("a"):  # once more, in a proof that goes on
        pass
    assert 16 <= stages.total < 17


def test_a_failed_stage_says_why_and_runs_again(tmp_path: Path) -> None:
    with pytest.raises(
        StageFailed, match=r"corpus failed; .*corpus.log ends with:(.|\n)*number of videos must be at least 1"
    ):
        Stages(tmp_path).run("corpus", "synth", "--output", tmp_path / "corpus", "--videos", 0)
    again = Stages(tmp_path)
    assert again.total > 0  # a failed try counts too
    again.run("corpus", "synth", "--output", tmp_path / "corpus", "--videos", 1, "--seconds", 1, "--fps", 6)
    assert (tmp_path / "corpus" / "manifest.jsonl").exists()


def test_a_corpus_without_captions_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        proof.main(["--corpus", str(tmp_path), "--output", str(tmp_path / "proof")])
    assert end.value.code == 2
    assert "captions.jsonl is missing" in capsys.readouterr().err.replace("\n", " ")


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

    results = proof_corpus.compare(tmp_path)

    assert [one["caption"] for one in results["clips"]] == ["caption of a", "caption of b"]
    assert results["loss"] == 0.5
    assert results["psnr"] == pytest.approx(np.mean([one["psnr"] for one in results["clips"]]))
    assert all(0 < one["psnr"] < 30 for one in results["clips"])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert Image.open(tmp_path / "side-by-side.png").width > 800
    assert "Overfitting check" in (tmp_path / "report.html").read_text()
