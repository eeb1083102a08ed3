"""Devices and data types of a model, and changed model folders."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.generation.conftest import FAST, apart
from videolavit.generation.generate import generate_images, generate_videos
from videolavit.generation.prompts import Picture, Prompt
from videolavit.generation.runtime import MODEL_PARTS, Runtime, RuntimeSettings
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import finish_model_folder
from videolavit.models.network import ModelError
from videolavit.models.part_files import save_part
from videolavit.models.presets import load_preset

PROMPT = Prompt(("a red ball",), seed=1)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def _picture(runtime: Runtime, seed: int = 0) -> Picture:
    """Picture from fixed codes: the codes that the language model samples may differ in another precision."""
    with runtime.use("keyframe_detokenizer") as detokenizer:
        conditions = detokenizer.decode_codes([torch.arange(30)])
        start = detokenizer.noise(32, 48, 2, [torch.Generator().manual_seed(seed)])
        return detokenizer.decode(detokenizer.sample(conditions, start, 2, 3.0))[0]


@pytest.mark.parametrize(("dtype", "levels"), [("bfloat16", 30), ("float16", 5)])
def test_half_precision_on_a_cpu(model: ModelFolder, runtime: Runtime, dtype: Any, levels: int) -> None:
    half = Runtime(model, RuntimeSettings(device="cpu", dtype=dtype))
    (video,) = generate_videos(half, [PROMPT], 1, FAST)
    assert video.frames.shape == (24, 32, 32, 3)
    assert video.frames.std() > 1
    assert [len(codes) for codes in video.motion] == [135]
    with half.use("language_model") as language_model:
        assert language_model.dtype == getattr(torch, dtype)
    assert 0 < np.abs(_picture(half).astype(float) - _picture(runtime)).mean() < levels
    assert np.abs(_picture(runtime, seed=1).astype(float) - _picture(runtime)).mean() > 30


def test_offload_on_a_cpu_changes_nothing(model: ModelFolder, runtime: Runtime) -> None:
    offloaded = Runtime(model, RuntimeSettings(device="cpu", offload=True))
    ours, theirs = (generate_images(one, [PROMPT], FAST)[0] for one in (offloaded, runtime))
    assert ours.tobytes() == theirs.tobytes()


@needs_gpu
@pytest.mark.parametrize("offload", [True, False])
def test_with_offload_only_the_part_in_use_is_on_the_gpu(model: ModelFolder, offload: bool) -> None:
    runtime = Runtime(model, RuntimeSettings(device="cuda", offload=offload))
    before = torch.cuda.memory_allocated()
    seen: set[int] = set()

    def look(*_: object) -> None:
        with_parameters = [part for part in MODEL_PARTS if part != "understanding"]
        seen.add(sum(_device(runtime.loaded(part)) == "cuda" for part in with_parameters))

    (video,) = generate_videos(runtime, [PROMPT], 1, FAST, look)
    assert video.frames.std() > 1
    assert seen == ({1} if offload else {len(MODEL_PARTS) - 1})
    assert (torch.cuda.memory_allocated() == before) == offload


def _device(part: Any) -> str:
    network = part if isinstance(part, torch.nn.Module) else part.unet
    return next(network.parameters()).device.type


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "abacus"])
def test_missing_devices_are_refused(model: ModelFolder, device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}' cannot be used: "):
        Runtime(model, RuntimeSettings(device=device))


def test_automatic_settings() -> None:
    settings = RuntimeSettings()
    assert settings.torch_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = RuntimeSettings(device="cpu")
    assert (on_cpu.torch_device().type, on_cpu.torch_dtype()) == ("cpu", torch.float32)
    assert RuntimeSettings(dtype="float16").torch_dtype() == torch.float16
    with pytest.raises(ValueError, match="dtype"):
        RuntimeSettings(dtype="float8")  # type: ignore[arg-type]


def test_a_saved_preset_behaves_as_the_preset(tmp_path: Path) -> None:
    preset = ModelFolder("tiny")
    preset.save(tmp_path / "saved")
    saved = ModelFolder(tmp_path / "saved")
    settings = replace(FAST, video_width=None, video_height=None)
    ours, theirs = (generate_videos(Runtime(one), [PROMPT], 1, settings)[0] for one in (saved, preset))
    assert theirs.frames.shape == (24, preset.sizes.video_height, preset.sizes.video_width, 3)
    assert (ours.visual, ours.motion) == (theirs.visual, theirs.motion)
    assert ours.frames.tobytes() == theirs.frames.tobytes()


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_networks_generate_the_same(changed: Any) -> None:
    """With a U-Net of one level, since compilation is slow."""

    def shrink(folder: Path) -> None:
        config = load_preset("tiny").keyframe_detokenizer.unet
        small = replace(config, block_out_channels=(32,), num_heads=(4,), transformer_layers=(1,))
        shutil.rmtree(folder / "keyframe_detokenizer" / "unet")
        save_part(small.build(), folder / "keyframe_detokenizer" / "unet")

    plain = changed(shrink)
    compiled = Runtime(plain.model, RuntimeSettings(compile=True))
    settings = replace(FAST, keyframe_steps=1)
    ours, theirs = (generate_images(one, [PROMPT], settings)[0] for one in (compiled, plain))
    assert apart(ours, theirs) <= 2
    assert _compiled(compiled)
    assert not _compiled(plain)


def _compiled(runtime: Runtime) -> bool:
    return runtime.loaded("keyframe_detokenizer").unet._compiled_call_impl is not None


@pytest.fixture
def changed(model_path: Path, tmp_path: Path) -> Callable[[Callable[[Path], object]], Runtime]:
    """Makes a runtime for a changed copy of the model folder."""

    def make(change: Callable[[Path], object]) -> Runtime:
        shutil.copytree(model_path, tmp_path / "changed")
        change(tmp_path / "changed")
        finish_model_folder(tmp_path / "changed", ModelFolder(model_path).facts)
        return Runtime(ModelFolder(tmp_path / "changed"))

    return make


def test_a_model_without_video_parts_generates_pictures(changed: Any, runtime: Runtime) -> None:
    def cut(folder: Path) -> None:
        shutil.rmtree(folder / "video_detokenizer")
        shutil.rmtree(folder / "understanding")

    part = changed(cut)
    ours, theirs = (generate_images(one, [PROMPT], FAST)[0] for one in (part, runtime))
    assert ours.tobytes() == theirs.tobytes()
    with pytest.raises(ModelError, match="has no video_detokenizer"):
        generate_videos(part, [PROMPT], 1, FAST)


def test_weights_of_another_shape_are_refused(changed: Any) -> None:
    def widen(folder: Path) -> None:
        path = folder / "motion_tokenizer" / "config.json"
        path.write_text(path.read_text().replace('"dim": 8', '"dim": 16'))

    with pytest.raises(ModelError, match=r"the weights in .*motion_tokenizer do not fit the network"):
        generate_videos(changed(widen), [PROMPT], 1, FAST)
