"""Runs as functions of the library: typed results, progress by callback, and nothing on stdout or stderr."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

CALLS = """
import dataclasses, json, sys
from pathlib import Path
from pipelines.decompose import DecomposeRequest, decompose, plan_decomposition
from pipelines.run import RunSettings
from pipelines.tokenize import TokenizeRequest, plan_tokenization, tokenize
from tests.process_state import unchanged
from videolavit.records.files import InputError
from videolavit.records.identity import IdentityMismatch
from videolavit.records.samples import SampleSettings
from videolavit.records.tokenizer_info import EncodeSettings

corpus, folder, results = map(Path, sys.argv[1:])
stages = []

def seen(progress):
    stages.append(progress.stage)

request = DecomposeRequest(inputs=[str(corpus)], output=str(folder / "clips"), sample=SampleSettings(segment_seconds=8))
found = {}
with unchanged():
    found["planned"] = dataclasses.asdict(plan_decomposition(request, seen))
    found["run"] = dataclasses.asdict(decompose(request, seen))
found["again"] = dataclasses.asdict(decompose(request))
retry = dataclasses.replace(request, inputs=(), run=RunSettings(retry_rejects=True, only="UnknownFormat"))
found["retried"] = dataclasses.asdict(decompose(retry))
tokens = TokenizeRequest(
    inputs=[str(folder / "clips")], output=str(folder / "tokens"), encode=EncodeSettings(model="tiny")
)
found["planned_tokens"] = dataclasses.asdict(plan_tokenization(tokens))
with unchanged():  # all is imported now
    found["tokens"] = dataclasses.asdict(tokenize(tokens, seen))
errors = {
    "InputError": dataclasses.replace(request, inputs=[str(corpus / "nothing")]),
    "IdentityMismatch": dataclasses.replace(request, sample=SampleSettings(segment_seconds=16)),
}
for name, wrong in errors.items():
    try:
        decompose(wrong)
    except (InputError, IdentityMismatch) as error:
        found[name] = type(error).__name__
found["stages"] = sorted(set(stages))
results.write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(ray_head: str, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of calls in a process whose stdout and stderr stay empty."""
    folder = tmp_path_factory.mktemp("library")
    corpus = folder / "corpus"
    corpus.mkdir()
    for video in sorted(small_corpus.iterdir())[2:]:
        (corpus / video.name).symlink_to(video)
    (corpus / "broken.mp4").write_bytes(b"no video" * 100)
    results = folder / "results.json"
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(corpus), str(folder), str(results)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": ray_head},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    found: dict[str, Any] = json.loads(results.read_text())
    return found


def test_a_plan_tells_what_is_new_and_its_cost(found: dict[str, Any]) -> None:
    new = found["planned"]["new"]
    assert (new["sources"], new["samples"], new["unread"]) == (5, 6, 1)
    assert new["figures"]["hours"] == pytest.approx((4 + 5 + 6 + 20) / 3600, rel=0.05)
    assert new["core_hours"] > 0
    assert found["planned"]["waiting"]["samples"] == 0
    assert found["planned_tokens"]["new"]["samples"] == 5


def test_a_run_tells_counts_rejects_hours_and_its_folder(found: dict[str, Any]) -> None:
    run = found["run"]
    assert (run["planned"], run["samples"], run["rejects"]) == (6, 5, 1)
    assert run["rejects_by_type"] == {"UnknownFormat": 1}
    assert run["video_hours"] == pytest.approx((4 + 5 + 6 + 20) / 3600)
    assert 0 < run["core_hours"] < 1
    assert run["counts"]["frames"] == 6 * (4 + 5 + 6 + 20)
    assert run["shards_left"] == 0
    assert Path(run["folder"]).is_dir()
    assert Path(run["report"]).is_file()
    assert found["again"] | {"seconds": 0} == run | {"seconds": 0}
    tokens = found["tokens"]
    assert (tokens["samples"], tokens["counts"]["videos"]) == (5, 5)
    assert tokens["counts"]["visual_tokens"] > 0


def test_rejects_are_retried(found: dict[str, Any]) -> None:
    assert found["retried"]["rejects_by_type"] == {"UnknownFormat": 1}
    assert found["retried"]["shards"] == found["run"]["shards"] + 1


def test_mistakes_are_typed_and_progress_is_reported(found: dict[str, Any]) -> None:
    assert found["InputError"] == "InputError"
    assert found["IdentityMismatch"] == "IdentityMismatch"
    assert {"plan", "decompose", "tokenize", "model"} <= set(found["stages"])
