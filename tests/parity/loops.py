"""The outputs of both sampling loops, step by step."""

from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from tests.parity.pack import Module
from tests.parity.results import Results, Steps, remembering
from videolavit.models.keyframe_detokenizer import Conditions, KeyframeDetokenizer, Start
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.video_detokenizer import VideoDetokenizer, VideoSettings


def detokenizer(module: Module) -> Results:
    words = module.config
    tokenizer = module.network("motion_tokenizer", words["motion_tokenizer"])
    scheduler, steps = remembering(EulerDiscreteScheduler, words["scheduler"])
    video = VideoDetokenizer(
        module.network("motion_condition_encoder", words["motion_condition"]),
        module.network("video_unet", words["video_unet"]),
        module.network("video_vae", words["vae"]),
        scheduler,
    )
    outputs: dict[str, Any] = {}
    for name, case in words["cases"].items():
        size = video.latent_size(case["height"], case["width"])
        motion = _motion(module, tokenizer, name, case["motion"], size)
        for output, value in _clip(module, video, steps, name, motion).items():
            outputs[f"{name}.{output}"] = value
    return Results(outputs)


def _motion(module: Module, tokenizer: MotionTokenizer, case: str, kind: str, size: tuple[int, int]) -> Tensor:
    """A case's motion at U-Net scale and latent size."""
    if kind == "raw":
        return module.input(f"{case}.motion")
    if kind == "quantized":
        return tokenizer.decode_to(tokenizer.encode(module.input(f"{case}.motion")), *size)
    assert kind == "ids", kind
    return tokenizer.decode_to(module.input(f"{case}.ids"), *size)


def _clip(module: Module, video: VideoDetokenizer, steps: Steps, name: str, motion: Tensor) -> dict[str, Any]:
    case = module.config["cases"][name]
    settings = VideoSettings(
        video_steps=case["steps"],
        min_guidance=case["min_guidance"],
        max_guidance=case["max_guidance"],
        fps=case["fps"],
        motion_bucket=case["motion_bucket_id"],
        noise_strength=case["noise_aug_strength"],
        condition_on_reference=case["condition_on_reference"],
        decode_chunk=case["decode_chunk_size"],
    )
    noise = module.input(f"{name}.noise_image")
    reference = video.encode_keyframes(module.input(f"{name}.keyframe").numpy(), noise, settings.noise_strength)
    first = len(steps.predictions)
    latents = video.sample(motion, reference, module.input(f"{name}.noise_latent"), settings)
    return {
        "timesteps": torch.stack(steps.timesteps[first:]),
        "sigmas": steps.sigmas,
        "reference_latent": reference,
        "guided_pred_step0": steps.predictions[first],
        "latents": latents,
        "frames": video.decode(latents, settings.decode_chunk),
    }


def keyframe_loop(module: Module) -> Results:
    words = module.config
    scheduler, steps = remembering(DDIMScheduler, words["scheduler"])
    unet, vae = module.network("image_unet", words["unet"]), module.network("image_vae", words["vae"])
    keyframe = KeyframeDetokenizer(None, unet, vae, scheduler)  # type: ignore[arg-type] - conditions are given
    clean = keyframe.encode(module.input("last_frame").numpy(), words["height"], words["width"])
    starts = {"free": Start(module.input("noise_free"))}
    for rate in words["rates"]:
        starts[f"rate{rate}"] = keyframe.noised_start(clean, module.input("noise_constraint"), rate, words["steps"])
    conditions = Conditions(module.input("prompt_embeds"), module.input("pooled"))
    outputs: dict[str, Any] = {"clean_latent": clean}
    for name, start in starts.items():
        first = len(steps.predictions)
        latent = keyframe.sample(conditions, start, words["steps"], words["guidance"])
        outputs |= {
            f"{name}.start_latent": start.latents,
            f"{name}.timesteps": torch.stack(steps.timesteps[first:]),
            f"{name}.guided_pred_step0": steps.predictions[first],
            f"{name}.latent": latent,
            f"{name}.image": keyframe.decode(latent),
        }
    return Results(outputs)
