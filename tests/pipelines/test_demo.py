"""The demo as a function: its summary, its page, and nothing on stdout or stderr."""

import html
import re
from pathlib import Path

import pytest

from jobs.demo import NEXT
from tests.conftest import run_silently

CODE = """
import sys
from pathlib import Path
from jobs.demo import NEXT
from pipelines import demo
output, video = map(Path, sys.argv[1:])
stages = []
summary = demo.demonstrate(output, [video], commands=NEXT, on_progress=lambda progress: stages.append(progress.stage))
assert summary.clips.samples == summary.tokens.samples == 9
assert summary.clips.rejects == summary.tokens.rejects == 0
shown = summary.exhibits
assert [len(of) for of in (shown.footage, shown.rebuilt, shown.made, shown.asked, shown.mixed)] == [1, 3, 6, 3, 3]
assert all(one.video.is_file() for of in vars(shown).values() for one in of)
assert all(0 < len(one.tokens) <= 64 + 18 for of in vars(shown).values() for one in of)
answers = [(one.caption, answer) for one in shown.asked for _, answer in one.answers]
right = [answer.rstrip(".").split()[-1] in caption.split() for caption, answer in answers]
assert len(right) == 9 and sum(right) >= 6, answers  # forms are often wrong
assert [stage for stage in stages if stage.endswith(" of 4")] == [f"{step} of 4" for step in range(1, 5)]
assert {"render", "decompose", "tokenize", "exhibits"} <= set(stages)
"""


def test_the_demo_prints_nothing(
    ray_head: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    run_silently(CODE, tmp_path / "demo", min(small_corpus.iterdir()))
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 1 + 3 + 6 + 3 + 2
    assert page.count("data:image/png;base64,") == 1
    assert all(command.words in html.unescape(page) for command in NEXT)
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # a page without a network
