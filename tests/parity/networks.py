"""The outputs of the single networks: tokenizers, condition networks, video U-Net, preprocessing."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.pack import Module
from tests.parity.results import Results, gap, outputs_of
from videolavit.models.published import VOCABULARY
from videolavit.models.quantizer import Quantizer
from videolavit.models.visual_tokenizer import keep_with_noise, normalize_images, resize_image


def motion_tokenizer(module: Module) -> Results:
    network = module.network("motion_tokenizer")
    with outputs_of(
        encoder_after_stage1=network.encoder.down_sample_layers[0],
        encoder_out=network.encoder,
        to_quantizer=network.encode_task_layer,
        decoder_after_upsample2=network.decoder.up_sample_layers[1].conv,
        decoder_out=network.decoder,
    ) as seen:
        tokens = network.encode(module.input("motion"))
        decoded = network.decode(tokens)
    outputs = {**seen, "tokens": tokens, "decoded": decoded}
    outputs["token_gap"] = gap(network.quantize.distances(seen["to_quantizer"])).flatten(1)
    starts = {"reconstruct": tokens} | ({"from_ids": module.input("ids")} if module.config["from_ids"] else {})
    for start, ids in starts.items():
        for height, width in module.config["unet_sizes"]:
            name = f"{start}_{height}x{width}"
            if module.wants(name):
                outputs[name] = network.decode_to(ids, height, width)
    if "low_signal" in module.config:
        low = module.network("motion_tokenizer", low_signal=True)
        outputs["low_signal.encoder_out"] = low.encoder(module.input("motion"))
        outputs["low_signal.decoder_out"] = low.decoder(module.input("low_signal.codes"))
    return Results(outputs, {"distinct_codes": len(tokens.unique())})


def motion_condition(module: Module) -> Results:
    network = module.network("motion_condition_encoder")
    with outputs_of(block0=network.blocks[0], norm=network.norm) as seen:
        out = network(module.input("motion"))
    outputs = {**seen, "out": out, "out_16x16": network(module.input("motion_16x16"))}
    if "low_signal" in module.config:
        low = module.network("motion_condition_encoder", low_signal=True)
        outputs["low_signal.out"] = low(module.input("motion"))
        outputs["low_signal.out_16x16"] = low(module.input("motion_16x16"))
    return Results(outputs)


def visual_tokenizer(module: Module) -> Results:
    network = module.network("dynamic_visual_tokenizer")
    images, keep = module.input("images"), module.input("keep").bool()
    with outputs_of(
        vit_features=network.encoder,
        merger_block0=network.causal_encoder.blocks[0],
        merged=network.causal_encoder,
        to_quantizer=network.encode_task_layer,
    ) as seen:
        codes = network.encode(images, keep)
    log_probs = network.keep_log_probs(seen["vit_features"])
    counts = [len(one) for one in codes]
    outputs = {
        **seen,
        "selector_logprobs": log_probs,
        "keep_with_gumbel": keep_with_noise(log_probs, _gumbel(module.input("gumbel_uniform"))),
        "ids": torch.cat(codes) + VOCABULARY.visual_range.start,
        "counts": counts,
        "id_gap": gap(network.quantize.distances(seen["to_quantizer"])),
        "continuous_features": torch.cat(network.embed(images, keep)),
        "merger_only": network.merge(module.input("merger_in"), module.input("keep_merger_only").bool()),
    }
    if "low_signal" in module.config:
        low = module.network("dynamic_visual_tokenizer", low_signal=True)
        with outputs_of("low_signal.", selector_hidden=low.token_predictor.in_conv) as hidden:
            features = low.patch_features(images)
            low.keep_log_probs(features)
        outputs |= {**hidden, "low_signal.vit_features": features, "low_signal.merged": low.merge(features, keep)}
    chosen = network.choose(seen["vit_features"])
    return Results(outputs, {"counts": counts, "keep_without_noise": float(chosen.double().mean())})


def _gumbel(uniform: Tensor) -> Tensor:
    return -torch.log(-torch.log((uniform.double() - 0.5) / 65536))


def quantizer(module: Module) -> Results:
    codebook, z = module.input("codebook"), module.input("z")
    network = Quantizer(*codebook.shape)
    network.load_state_dict({"embedding.weight": codebook})
    network.to(codebook.dtype)
    ids = network(z)
    cosine = (F.normalize(z, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(-1)
    return Results(
        {"ids": ids, "gap": gap(network.distances(z)), "quantized": network.lookup(ids)},
        {"agree_with_cosine_search": float((ids == cosine).double().mean())},
    )


def condition_decoder(module: Module) -> Results:
    (codebook,) = module.tensors("codebook").values()
    network = module.network("highres_decoder", codebook=codebook)
    codes = list(module.input("codes").split(module.config["counts"]))
    with outputs_of(block0=network.blocks[0], reconstructed_features=network.decode_task_layer) as seen:
        context, pooled = network(codes)
    outputs = {**seen, "prompt_embeds": context, "pooled": pooled}
    if "low_signal" in module.config:
        low = module.network("highres_decoder", low_signal=True, codebook=codebook)
        with outputs_of("low_signal.", norm=low.norm) as seen:
            low.features(codes)
        outputs |= seen
    return Results(outputs)


def video_unet(module: Module) -> Results:
    network = module.network("video_unet")
    outputs: dict[str, Tensor] = {}
    for case in module.config["cases"]:
        transformer, middle = network.unet.down_blocks[0].attentions[0], network.unet.mid_block
        with outputs_of(f"{case}.", down0_transformer0=transformer, mid=middle) as seen:
            outputs[f"{case}.out"] = _denoise(network, module, case)
        outputs |= seen
    if "low_signal" in module.config:
        network = module.network("video_unet", low_signal=True)
        stock = network.unet
        with outputs_of(
            "low_signal.",
            down_first=stock.down_blocks[0],
            down_last=stock.down_blocks[-1],
            mid=stock.mid_block,
            up_first=stock.up_blocks[0],
            up_last=stock.up_blocks[-1],
        ) as seen:
            outputs["low_signal.out"] = _denoise(network, module, _low_signal_case(module))
        outputs |= seen
    return Results(outputs)


def _low_signal_case(module: Module) -> str:
    """The case whose inputs the low-signal variant gets, which the description of its outputs names."""
    text = module.outputs.get("low_signal.out", {}).get("what", "")
    named = [case for case in module.config["cases"] if text.endswith(f"inputs of {case}")]
    return named[0] if named else next(iter(module.config["cases"]))


def _denoise(network: torch.nn.Module, module: Module, case: str) -> Tensor:
    sample, context = module.input(f"{case}.sample"), module.input(f"{case}.context")
    added = torch.tensor(module.config["added_ids"], dtype=sample.dtype)[: len(sample)]
    return network(sample, module.config["timestep"], context, added)


def image_preprocessing(module: Module) -> Results:
    results = Results({})
    for index in range(len(module.config["images"])):
        resized = resize_image(module.input(f"image{index}").numpy())
        results.facts[f"image{index}.resized_u8_sha256"] = hashlib.sha256(resized.tobytes()).hexdigest()
        results.outputs[f"image{index}"] = normalize_images(resized[None])[0]
    return results
