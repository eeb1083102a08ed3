"""Model folders made from given weights: what is taken, what starts without effect, and what is refused."""

import json
from dataclasses import asdict
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.assemble import main
from tests.models.backbones import write_backbone
from tests.models.diffusion_folders import CONTEXT, POOLED, write_image_diffusion, write_video_diffusion
from tests.models.published_folder import make_published
from videolavit.models.assembly import AssembleSettings, AssembleSummary, assemble
from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError

FAMILY = "qwen 2, tied and padded"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_backbone(folder / "language", FAMILY)
    write_image_diffusion(folder / "image")
    write_video_diffusion(folder / "video")
    unused = folder / "video/unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(unused) | {"ema.decay": torch.zeros(1)}, unused, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def summary(sources: Path) -> AssembleSummary:
    """A model of everything."""
    return assemble(
        sources / "model",
        AssembleSettings(
            language_model=str(sources / "language"),
            motion_tokenizer="mini",
            image_diffusion=str(sources / "image"),
            video_diffusion=str(sources / "video"),
            like="tiny",
        ),
    )


@pytest.fixture(scope="module")
def model(summary: AssembleSummary) -> ModelFolder:
    return ModelFolder(summary.folder)


def test_the_vocabulary_is_named(model: ModelFolder, sources: Path) -> None:
    named = json.loads((model.path / "model.json").read_text())["vocabulary"]
    rows = json.loads((sources / "language/config.json").read_text())["vocab_size"]
    codes = ModelFolder("mini").vocabulary.motion_codes
    assert named == {"text_size": rows, "visual_codes": 512, "motion_codes": codes}
    assert json.loads((model.path / "language_model/config.json").read_text())["vocab_size"] == model.vocabulary.size
    assert len(model.text_tokenizer()) < rows
    assert "<|im_start|>" in str(model.text_tokenizer().chat_template)


def test_parts_of_understanding_begin_as_those_of_generation(model: ModelFolder) -> None:
    for part in ("language_model", "motion_tokenizer"):
        assert model.digest(f"understanding/{part}") == model.digest(part)
    generation, understanding = (model.load(f"{prefix}visual_tokenizer") for prefix in ("", "understanding/"))
    assert understanding.config.features_dim == model.load("language_model").config.hidden_size
    ours = understanding.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in generation.state_dict().items())


def test_what_was_given_counts_as_trained(model: ModelFolder) -> None:
    assert model.trained_parts == [
        *(f"keyframe_detokenizer/{name}" for name in ("unet", "vae", "scheduler")),
        *(f"video_detokenizer/{name}" for name in ("unet", "vae", "scheduler")),
        "language_model",
        "understanding/language_model",
    ]


def test_pictures_start_as_those_of_the_source(model: ModelFolder, sources: Path) -> None:
    """Whatever the codes, the U-Net says what SDXL's says without a text."""
    detokenizer = model.keyframe_detokenizer("cpu", torch.float32)
    source = diffusers.UNet2DConditionModel.from_pretrained(sources / "image/unet").eval()
    conditions = detokenizer.decode_codes([torch.tensor([5, 3]), torch.tensor([7])])
    assert conditions.context.shape[2:] == (CONTEXT,)
    latents, ids = torch.randn(2, 4, 8, 8), torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, -1)
    empty = {"text_embeds": torch.zeros(2, POOLED), "time_ids": ids}
    with torch.no_grad():
        expected = source(latents, 500, torch.zeros(2, 77, CONTEXT), added_cond_kwargs=empty).sample
        found = detokenizer.unet(
            latents, 500, conditions.context, added_cond_kwargs=empty | {"text_embeds": conditions.pooled}
        )
    torch.testing.assert_close(found.sample, expected)
    assert type(detokenizer.scheduler).__name__ == "DDIMScheduler"


def test_videos_start_as_those_of_the_source(model: ModelFolder, sources: Path) -> None:
    """Whatever the motion, the U-Net says what Stable Video Diffusion's says with an empty picture embedding."""
    detokenizer = model.video_detokenizer("cpu", torch.float32)
    source = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(sources / "video/unet").eval()
    sample, added = torch.randn(1, 4, 10, 8, 8), torch.tensor([[6.0, 127, 0.02]])
    with torch.no_grad():
        context = detokenizer.motion_encoder(torch.randn(1, 2, 4, 8, 8))
        found = detokenizer.unet(sample, 1.5, context, added)
        expected = source(sample[:, :, :8], 1.5, torch.zeros(1, 1, 32), added).sample
    torch.testing.assert_close(found, expected)


def test_the_report_names_tensors(summary: AssembleSummary) -> None:
    reports = summary.reports
    assert reports["language_model"].widened == ("model.embed_tokens.weight", "lm_head.weight")
    assert "model.norm.weight" in reports["language_model"].taken
    assert reports["video_detokenizer/unet"].widened == ("unet.conv_in.weight",)
    assert reports["video_detokenizer/unet"].left_over == ("unet.ema.decay",)
    assert reports["understanding/visual_tokenizer"].new == ("vit_proj.weight", "vit_proj.bias")
    conditions = reports["keyframe_detokenizer/conditions"]
    assert not conditions.taken
    assert "unet_proj_1.weight" in conditions.new
    listed = json.loads((summary.folder / "assembly.json").read_text())
    assert listed["video_detokenizer/unet"]["left_over"] == ["unet.ema.decay"]
    assert listed.keys() == reports.keys()


def test_sizes_suit_the_networks(model: ModelFolder) -> None:
    for unit, width, height in (
        ("keyframe_detokenizer", model.sizes.keyframe_width, model.sizes.keyframe_height),
        ("video_detokenizer", model.sizes.video_width, model.sizes.video_height),
    ):
        multiple = model.pixel_multiple(unit)  # type: ignore[arg-type]
        assert (width % multiple, height % multiple) == (0, 0)


def test_tokenizers_in_the_published_layout(tmp_path: Path) -> None:
    published, tiny = make_published(tmp_path / "published"), ModelFolder("tiny")
    summary = assemble(
        tmp_path / "model",
        AssembleSettings(
            visual_tokenizer=str(published / "visual_tokenizer"), motion_tokenizer=str(published), like="tiny"
        ),
    )
    model = ModelFolder(summary.folder)
    for part in ("visual_tokenizer", "motion_tokenizer"):
        assert model.digest(part) == tiny.digest(part)
        assert part in model.trained_parts
        assert not summary.reports[part].new
    assert model.vocabulary == tiny.vocabulary


def test_parts_of_a_model(tmp_path: Path) -> None:
    """Tokenizers and detokenizers that were trained together, with another language model."""
    shapes, source = "shapes", str(write_backbone(tmp_path / "language", "llama"))
    settings = AssembleSettings(
        language_model=source,
        visual_tokenizer=shapes,
        motion_tokenizer=shapes,
        image_diffusion=shapes,
        video_diffusion=shapes,
        like="mini",
    )
    model, trained = ModelFolder(assemble(tmp_path / "model", settings).folder), ModelFolder(shapes)
    for part in ("visual_tokenizer", "motion_tokenizer", "keyframe_detokenizer/conditions", "video_detokenizer/unet"):
        assert model.digest(part) == trained.digest(part)
    assert set(trained.trained_parts) <= {*model.trained_parts}
    assert model.sizes == trained.sizes
    theirs = trained.facts.generation
    assert model.facts.generation == {
        name: theirs[name] for name in ("min_visual", "keyframe_steps", "video_steps", "max_guidance")
    }
    assert theirs["temperature"] != 1.0  # suits the language model of `shapes`, which is not here


@pytest.mark.parametrize("kind", ["keyframe", "video"])
def test_sizes_are_those_of_the_model_that_a_detokenizer_comes_from(kind: str, tmp_path: Path) -> None:
    """Without `like`, too: a picture of another size than the trained one is full of what it should show once."""
    names = {"keyframe": ("image_diffusion", "visual_tokenizer"), "video": ("video_diffusion",)}[kind]
    settings = AssembleSettings(**dict.fromkeys(names, "shapes"))
    model = ModelFolder(assemble(tmp_path / "model", settings).folder)
    ours, theirs = asdict(model.sizes), asdict(ModelFolder("shapes").sizes)
    assert {name for name in ours if ours[name] == theirs[name]} == {f"{kind}_width", f"{kind}_height"}


def test_what_does_not_fit_is_named(sources: Path, tmp_path: Path) -> None:
    def refused(message: str, **settings: str) -> None:
        with pytest.raises(ModelError, match=message):
            assemble(tmp_path / "model", AssembleSettings(**{"like": "tiny"} | settings))
        assert not (tmp_path / "model").exists()

    refused("no visual_tokenizer in .*: name a model", visual_tokenizer=str(tmp_path))
    refused("no language model in", language_model=str(tmp_path))
    broken = write_image_diffusion(tmp_path / "broken")
    weights = broken / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["decoder.conv_in.weight"] = torch.zeros(2, 2)
    save_file({name: value for name, value in state.items() if name != "decoder.conv_in.bias"}, weights)
    shapes = r"missing decoder\.conv_in\.bias\n  decoder\.conv_in\.weight has shape \[2, 2\], expected \[32, 4, 3, 3\]"
    refused(shapes, image_diffusion=str(broken))
    config = broken / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"addition_embed_type": None}))
    refused("does not fit keyframe_detokenizer/unet: addition_embed_type is None", image_diffusion=str(broken))
    refused("holds a UNet2DConditionModel, not a UNetSpatioTemporal", video_diffusion=str(sources / "image"))
    refused("cannot read .*config.json", video_diffusion=str(tmp_path / "nowhere"))


def test_the_command_shows_what_it_took(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "model")
    main(["--output", target, "--video-diffusion", str(sources / "video"), "--like", "tiny"])
    shown = capsys.readouterr().out
    assert "left over of video_detokenizer/unet: unet.ema.decay" in shown
    assert "ids: 259 of texts, 512 visual codes, 128 motion codes, 4 markers" in shown
    with pytest.raises(SystemExit) as end:
        main(["--output", target, "--like", "tiny"])
    assert end.value.code == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
