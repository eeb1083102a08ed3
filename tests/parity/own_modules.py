"""The modules of the project's own pack: configurations, components and inputs, at other sizes than the shared one."""

from typing import Any

import numpy as np

from tests.parity.rule import FORMULA

SEED = 7

VISUAL = {
    "image_size": 42,
    "patch_size": 7,
    "width": 32,
    "vit_layers": 2,
    "vit_head_dim": 8,
    "vit_mlp_ratio": 4.3637,
    "vit_layernorm_eps": 1e-6,
    "vit_head_out": 6,
    "merger_layers": 2,
    "merger_heads": 2,
    "merger_mlp_ratio": 4.3637,
    "merger_layernorm_eps": 1e-5,
    "n_code": 40,
    "code_dim": 6,
    "llm_dim": 16,
    "softmax_eps": 1e-6,
}
MOTION = {
    "dim": 24,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "num_frames": 8,
    "grid_h": 12,
    "grid_w": 8,
    "n_code": 20,
    "code_dim": 6,
    "depth": 12,
    "layernorm_eps": 1e-5,
}
CONDITION = {"dim": 24, "num_heads": 2, "depth": 2, "out_channels": 20, "mlp_ratio": 3.0, "layernorm_eps": 1e-5}
UNET = {
    "block_out_channels": [32, 64],
    "num_attention_heads": [2, 4],
    "layers_per_block": 1,
    "cross_attention_dim": 20,
    "addition_time_embed_dim": 8,
    "in_channels": 10,
    "out_channels": 4,
    "groupnorm_groups": 32,
}
CLIP = {
    "batch": 1,
    "height": 32,
    "width": 48,
    "num_frames": 8,
    "steps": 3,
    "min_guidance": 1.0,
    "max_guidance": 4.0,
    "fps": 6,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "decode_chunk_size": 3,
    "condition_on_reference": True,
}
EULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
DDIM = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}
PATCHES = 36
TOKENS = 6
TEXT_MARKERS = {"image": -200, "video": -201}


def normal(shape: list[int], scale: float = 1.0) -> dict[str, Any]:
    return {"kind": "normal", "shape": shape, "scale": scale}


def integers(shape: list[int], high: int, low: int = 0, dtype: str = "int64") -> dict[str, Any]:
    return {"kind": "integers", "shape": shape, "low": low, "high": high, "dtype": dtype}


def stored(array: Any) -> np.ndarray:
    return np.asarray(array)


def keep(name: str, rows: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, *name.encode()])
    return rng.integers(0, 2, (rows, PATCHES)).astype(np.uint8)


def modules() -> dict[str, dict[str, Any]]:
    """Name -> config, components with their configuration words, and inputs."""
    return {
        "motion_tokenizer": {
            "config": MOTION | {"unet_sizes": [[6, 10], [16, 16]], "from_ids": True, "low_signal": 0.04},
            "components": {"motion_tokenizer": MOTION},
            "inputs": {
                "motion": normal([2, 2, 8, 12, 8], 0.7),
                "ids": integers([2, TOKENS], 20),
                "low_signal.codes": normal([2, 1, 3, 2, 6]),
            },
        },
        "motion_condition": _motion_condition(1, 5, None),
        "motion_condition_temporal": _motion_condition(2, 4, 4),
        "visual_tokenizer": _visual_tokenizer(),
        "quantizer": {
            "config": {"n_code": 31, "code_dim": 5, "n_vectors": 60},
            "components": {},
            "inputs": {
                "codebook": stored(np.random.default_rng(SEED).normal(0, 0.3, (31, 5)).astype(np.float32)),
                "z": normal([60, 5], 2.0),
            },
        },
        "condition_decoder": _condition_decoder(),
        "video_unet": _video_unet(),
        "detokenizer": _detokenizer(),
        "keyframe_loop": _keyframe_loop(),
        "llm": _llm(),
        "image_preprocessing": _image_preprocessing(),
    }


def _motion_condition(batch: int, frames: int, temporal: int | None) -> dict[str, Any]:
    table = {"num_frames": frames, "temporal_embedding": temporal is not None}
    return {
        "config": CONDITION | table | {"low_signal": 0.04},
        "components": {"motion_condition_encoder": CONDITION | table},
        "inputs": {
            "motion": normal([batch, 2, frames, 10, 14], 0.5),
            "motion_16x16": normal([1, 2, frames, 16, 16], 0.5),
        },
    }


def _visual_tokenizer() -> dict[str, Any]:
    every_second = np.arange(PATCHES) % 2
    only = stored(np.stack([np.ones(PATCHES), np.zeros(PATCHES), every_second]).astype(np.uint8))
    return {
        "config": VISUAL | {"low_signal": 0.04},
        "components": {"dynamic_visual_tokenizer": VISUAL},
        "inputs": {
            "images": normal([2, 3, 42, 42]),
            "keep": keep("visual_tokenizer", 2),
            "keep_merger_only": only,
            "gumbel_uniform": integers([2, PATCHES, 2], 65536, low=1),
            "merger_in": normal([3, PATCHES, 32]),
        },
    }


def _condition_decoder() -> dict[str, Any]:
    words = {
        "image_size": 42,
        "patch_size": 7,
        "n_code": 40,
        "code_dim": 6,
        "dim": 24,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 4.3637,
        "layernorm_eps": 1e-5,
        "feature_dim": 40,
    }
    return {
        "config": words | {"counts": [3, 1, 36, 10], "low_signal": 0.04},
        "components": {"codebook": words, "highres_decoder": words},
        "inputs": {"codes": integers([50], 40)},
    }


def _video_unet() -> dict[str, Any]:
    cases = {"square": [1, 3, 16, 16], "wide": [2, 2, 12, 20]}
    inputs = {}
    for name, (batch, frames, height, width) in cases.items():
        inputs[f"{name}.sample"] = normal([batch, frames, 10, height, width])
        inputs[f"{name}.context"] = normal([batch, frames, 256, 20])
    return {
        "config": UNET
        | {"cases": cases, "added_ids": [[6.0, 127.0, 0.02], [8.0, 30.0, 0.1]], "timestep": 0.41, "low_signal": 0.06},
        "components": {"video_unet": UNET},
        "inputs": inputs,
    }


def _detokenizer() -> dict[str, Any]:
    cases = {
        "tokens": CLIP | {"motion": "ids", "condition_on_reference": False, "max_guidance": 3.0, "steps": 4},
        "vectors": CLIP | {"motion": "raw", "fps": 8, "decode_chunk_size": 8},
        "round_trip": CLIP | {"motion": "quantized", "height": 24, "motion_bucket_id": 40, "noise_aug_strength": 0.1},
    }
    motion = {"ids": ("ids", integers([1, TOKENS], 20)), "quantized": ("motion", normal([1, 2, 8, 12, 8], 0.7))}
    inputs = {}
    for name, case in cases.items():
        height, width = case["height"], case["width"]
        raw = ("motion", normal([1, 2, 8, height // 2, width // 2], 0.1))
        kind, given = motion.get(case["motion"], raw)
        inputs |= {
            f"{name}.keyframe": integers([1, height, width, 3], 256, dtype="uint8"),
            f"{name}.{kind}": given,
            f"{name}.noise_image": normal([1, 3, height, width]),
            f"{name}.noise_latent": normal([1, 8, 4, height // 2, width // 2]),
        }
    vae = {"block_out_channels": [32, 32], "layers_per_block": 1, "scaling_factor": 0.2}
    parts = {"motion_tokenizer": MOTION, "motion_condition": CONDITION, "video_unet": UNET, "vae": vae}
    return {
        "config": {"scheduler": EULER, **parts, "cases": cases},
        "components": {
            "motion_tokenizer": MOTION,
            "motion_condition_encoder": CONDITION,
            "video_unet": UNET,
            "video_vae": vae,
        },
        "inputs": inputs,
    }


def _keyframe_loop() -> dict[str, Any]:
    unet = {
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "num_heads": [2, 4],
        "cross_attention_dim": 12,
        "transformer_layers_per_block": [1, 2],
        "addition_time_embed_dim": 4,
        "pooled_dim": 6,
    }
    vae = {"block_out_channels": [32, 32], "layers_per_block": 1, "scaling_factor": 0.3}
    return {
        "config": {
            "vae": vae,
            "unet": unet,
            "scheduler": DDIM,
            "height": 24,
            "width": 40,
            "context_len": 10,
            "steps": 8,
            "guidance": 2.5,
            "rates": [0.75, 0.4],
        },
        "components": {"image_unet": unet, "image_vae": vae},
        "inputs": {
            "last_frame": integers([2, 60, 20, 3], 256, dtype="uint8"),  # tall: both orders of the resize differ
            "prompt_embeds": normal([2, 10, 12]),
            "pooled": normal([2, 6]),
            "noise_constraint": normal([2, 4, 12, 20]),
            "noise_free": normal([2, 4, 12, 20]),
        },
    }


def _llm() -> dict[str, Any]:
    image, video = TEXT_MARKERS["image"], TEXT_MARKERS["video"]
    prompts = [[1, 40, image, 7, 8], [1, image, 11, 12, 13, 14, 15], [1, 5, 6, 9, image, 21]]
    labels = [[-100] * (prompt.index(image) + 1) + prompt[prompt.index(image) + 1 :] for prompt in prompts]
    longest = max(map(len, prompts))
    words = {
        "hidden": 16,
        "intermediate": 24,
        "layers": 2,
        "heads": 2,
        "rms_norm_eps": 1e-5,
        "visual": VISUAL | {"vit_layers": 1, "merger_layers": 1},
        "motion": MOTION,
    }
    return {
        "config": words
        | {
            "image_prompts": prompts,
            "video_prompt": [1, 5, video, 7, 8, 9],
            "answer_tokens": 10,
            "generation_prompts": [[100, 200, 300], [17], [4000, 5, 31000, 12, 900]],
            "image_tokens": 6,
            "motion_new_tokens": 5,
            "min_new": 4,
            "cfg_image": 3.0,
            "cfg_motion": 5.0,
        },
        "components": {"language_model_sft": words},
        "inputs": {
            "keep_images": keep("llm images", 3),
            "keep_frames": keep("llm frames", 2),
            "images": normal([3, 3, 42, 42]),
            "frames": normal([2, 3, 42, 42]),
            "motion": normal([2, 2, 8, 12, 8], 0.7),
            "image_labels_in": stored([row + [-100] * (longest - len(row)) for row in labels]),
        },
    }


def _image_preprocessing() -> dict[str, Any]:
    pictures = [[90, 33, "noise"], [30, 50, "formula"], [224, 224, "noise"]]
    inputs = {}
    for index, (height, width, kind) in enumerate(pictures):
        shape = [height, width, 3]
        noise = integers(shape, 256, dtype="uint8")
        inputs[f"image{index}"] = noise if kind == "noise" else {"kind": kind, "shape": shape, "formula": FORMULA}
    return {"config": {"images": pictures}, "components": {}, "inputs": inputs}
