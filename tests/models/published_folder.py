"""The layout of `rain1011/Video-LaVIT-v1`, made at tiny size with torch and JSON alone: none of the importer's code."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from videolavit.models.folder import ModelFolder

State = dict[str, Tensor]
BF16 = torch.bfloat16

LLAMA = {
    "_name_or_path": "somewhere",
    "architectures": ["LavitLlamaForCausalLM"],
    "model_type": "lavit_llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.2",
    "use_cache": True,
    "vocab_size": 259 + 512 + 128 + 4,
}
"""A config as transformers 4.36 wrote it."""

SFT = LLAMA | {"use_xformers": True, "tokenizer_padding_side": "right", "tokenizer_model_max_length": 4096}


def make_published(folder: Path) -> Path:
    """Every file of the published layout; the language models, both video networks and one U-Net in bfloat16."""
    tiny = ModelFolder("tiny")
    save(folder / "motion_tokenizer.bin", state(tiny, "motion_tokenizer"))
    visual = state(tiny, "visual_tokenizer")
    vit = {name.removeprefix("encoder."): tensor for name, tensor in visual.items() if name.startswith("encoder.")}
    save(folder / "visual_tokenizer/eva_vitg_psz14.bin", vit)
    rest = {name: tensor for name, tensor in visual.items() if not name.startswith("encoder.")}
    save(folder / "visual_tokenizer/tokenizer_encoder.bin", rest)
    save(folder / "visual_tokenizer/highres_tokenizer_decoder.bin", state(tiny, "keyframe_detokenizer/conditions"))
    _make_diffusers(folder, tiny)
    _make_video_networks(folder, tiny)
    _make_language_models(folder, tiny)
    return folder


def state(model: ModelFolder, part: str, dtype: torch.dtype | None = None) -> State:
    tensors: State = model.load(part, dtype=None).state_dict()
    return {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}


def save(file: Path, tensors: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, file)


def load(file: Path) -> State:
    loaded: State = torch.load(file, weights_only=True)
    return loaded


def video_networks(tiny: ModelFolder) -> tuple[State, State]:
    """The U-Net without a prefix, and the motion encoder with its own."""
    unet = state(tiny, "video_detokenizer/unet", BF16)
    encoder = state(tiny, "video_detokenizer/motion_encoder", BF16)
    return (
        {name.removeprefix("unet."): tensor for name, tensor in unet.items()},
        {f"motion_encoder.{name}": tensor for name, tensor in encoder.items()},
    )


def _make_diffusers(folder: Path, tiny: ModelFolder) -> None:
    for ours, theirs in (("keyframe_detokenizer", "image_detokenizer"), ("video_detokenizer", "video_detokenizer")):
        tiny.load(f"{ours}/scheduler").save_pretrained(folder / theirs / "scheduler")
        vae = tiny.load(f"{ours}/vae", dtype=None)
        vae.save_config(folder / theirs / "vae")
        save_file(vae.state_dict(), folder / theirs / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    unet = tiny.load("keyframe_detokenizer/unet", dtype=None)
    unet.save_config(folder / "image_detokenizer/unet")
    save(folder / "image_detokenizer/unet/diffusion_pytorch_model.bin", unet.to(torch.float16).state_dict())


def _make_video_networks(folder: Path, tiny: ModelFolder) -> None:
    unet, encoder = video_networks(tiny)
    save(folder / "video_detokenizer/unet/diffusion_pytorch_model.bin", unet | encoder)
    tiny.load("video_detokenizer/unet").unet.save_config(folder / "video_detokenizer/unet")
    other_run = {f"unet.{name}": tensor + 1 for name, tensor in unet.items()}
    save(folder / "video_3d_unet.bin", other_run | {name: tensor + 1 for name, tensor in encoder.items()})


def _make_language_models(folder: Path, tiny: ModelFolder) -> None:
    save_shards(folder / "language_model", state(tiny, "language_model", BF16), 3)
    inside = {
        f"model.{part}.{name}": tensor
        for part in ("visual_tokenizer", "motion_tokenizer")
        for name, tensor in state(tiny, f"understanding/{part}", BF16).items()
    }
    save_shards(folder / "language_model_sft", state(tiny, "understanding/language_model", BF16) | inside, 4)
    for name, config in (("language_model", LLAMA), ("language_model_sft", SFT)):
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
        tiny.text_tokenizer().save_pretrained(folder / name)


def save_shards(folder: Path, tensors: State, count: int) -> None:
    """Shards of about as many tensors each, and their index."""
    names = list(tensors)
    weight_map = {}
    for number in range(count):
        file = f"pytorch_model-{number + 1:05d}-of-{count:05d}.bin"
        shard = names[len(names) * number // count : len(names) * (number + 1) // count]
        save(folder / file, {name: tensors[name].clone() for name in shard})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
