"""The demo as a function: its summary, and nothing on stdout or stderr."""

from pathlib import Path

import pytest

from tests.conftest import run_silently

CODE = """
import sys
from pathlib import Path
from pipelines import demo
demo.TRAININGS = {name: (objective, 20) for name, (objective, _) in demo.TRAININGS.items()}
output, video = map(Path, sys.argv[1:])
stages = []
summary = demo.demonstrate(output, [video], lambda progress: stages.append(progress.stage))
assert summary.corpus.num_videos == 8 and summary.clips.samples == summary.tokens.samples == 9
assert [training.steps for training in summary.trainings] == [20, 20]
assert summary.clip_facts.num_clips == summary.token_facts.num_clips == summary.clips.counts["clips"]
assert [clip.frames for clip in summary.reconstruction.clips] == [12]
assert all(file.is_file() for file in (summary.sheet, summary.report, summary.reconstruction.side_by_side))
assert [stage for stage in stages if stage.endswith(" of 6")] == [f"{step} of 6" for step in range(1, 7)]
assert {"render", "decompose", "train vae", "train motion-tokenizer", "tokenize"} <= set(stages)
"""


def test_the_demo_prints_nothing(
    ray_head: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    run_silently(CODE, tmp_path / "demo", min(small_corpus.iterdir()))
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "videos to clips to tokens" in page
    assert "data:video/mp4;base64," in page
