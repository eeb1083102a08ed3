"""The proof with a backbone, from its start to its report, at its smallest and with a backbone that is tiny."""

import json
from pathlib import Path

import pytest
import torch

from jobs import proof as job
from pipelines.backbone_proof import BackboneSizes, prove_backbone
from pipelines.backbone_results import CHATS
from tests.models.backbones import write_backbone
from videolavit.models.folder import ModelFolder
from videolavit.progress import Progress

SMALLEST = BackboneSizes(
    train_videos=4,
    held_out_videos=2,
    prompts=1,
    questions=1,
    rows_steps=2,
    language_steps=2,
    chat_steps=2,
    threads=1,
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_backbone_goes_through_all_stages(ray_head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    backbone = write_backbone(tmp_path / "backbone", "llama")
    output = tmp_path / "proof"
    summary = prove_backbone(output, backbone, SMALLEST)
    names = [one.name for one in summary.criteria]
    assert names[:2] == ["answers to which direction it moves", "direction of generated motion"]
    assert [name for name in names if "plain English" in name] == names[2:]
    page = summary.report.read_text()
    assert all(f"{chat} ({when})" in page for chat in CHATS for when in ("before", "after"))
    before, rows, language = (
        ModelFolder(output / name).load("language_model").state_dict()
        for name in ("assembled", "rows/model", "language/model")
    )
    texts = ModelFolder(output / "assembled").vocabulary.text_size
    table = "model.embed_tokens.weight"
    assert {name for name, value in rows.items() if not torch.equal(value, before[name])} <= {table, "lm_head.weight"}
    assert torch.equal(rows[table][:texts], before[table][:texts])
    assert torch.equal(language[table][:texts], before[table][:texts])
    projection = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(language[projection], rows[projection])
    assert (output / "language" / "adapter").is_dir()
    digests = [ModelFolder(place).digest("visual_tokenizer") for place in ("shapes", output / "assembled")]
    assert digests[0] == digests[1]
    again: list[Progress] = []
    assert prove_backbone(output, backbone, SMALLEST, again.append).criteria == summary.criteria
    assert {one.message for one in again} == {"done before"}
    assert json.loads((output / "results.json").read_text())["chats"].keys() == {"before", "after"}


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--backbone-sizes.prompts", "0"], "prompts must be at least 1, not 0"),
        (["--output", "s3://bucket/proof"], "s3://bucket/proof is no local folder"),
    ):
        with pytest.raises(SystemExit) as end:
            job.main(["--backbone", str(tmp_path), "--output", str(tmp_path / "proof"), *words])
        assert end.value.code == 2
        assert expected in capsys.readouterr().err.replace("\n", " ")
