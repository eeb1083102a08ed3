"""The training component that docs/extending.md shows works as it is written there."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.train import train
from tests.conftest import ROOT, moving_texture
from tests.training.test_sources import write_run
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.training import components
from videolavit.training.settings import TrainInputs, TrainSettings


def test_the_component_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    section = page.split("## A training component\n")[1].split("\n## ")[0]
    code, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    ((name, (settings, purpose)),) = eval(line).items()
    file = settings.split(":")[0]
    module = ModuleType(f"{components.__name__}.{file}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs/extending.md", "exec"), module.__dict__)
    monkeypatch.setitem(components.COMPONENTS, name, (settings, purpose))
    write_mp4(moving_texture(60, 48, 64, 0), tmp_path / "video.mp4", 6)
    clips = write_run(tmp_path / "clips", [{"source": str(tmp_path / "video.mp4")}])

    summary = train(
        name,
        "tiny",
        TrainInputs(train=[clips], validation=[clips]),
        tmp_path / "run",
        objective=components.settings_type(name)(size=16),  # type: ignore[call-arg]
        settings=TrainSettings(steps=2, batch=2, micro_batch=1, log_every=1, trackers=()),
    )

    assert summary.metrics["validation/error"] > 0
    before, after = (ModelFolder(model).load("keyframe_detokenizer/vae") for model in ("tiny", summary.model))
    assert before.encoder.conv_in.weight.equal(after.encoder.conv_in.weight)
    assert not before.decoder.conv_in.weight.equal(after.decoder.conv_in.weight)
