"""Language models of `transformers` as backbones: any family, with a vocabulary that grows by codes."""

from __future__ import annotations

import copy
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videolavit.scratch import scratch_folder
from videolavit.vocabulary import stop_ids

from ..language_model.families import check_trainable, unpackable
from ..network import CONFIG, ModelError
from ..part_files import language_model_class, load_language_model, naming_folder
from ..parts import SEED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CODE_DEVIATION = 0.1
"""Standard deviation of new rows about the mean of the old ones, relative to that of the old ones.

Rows differ, and new ids stay as improbable after a text as the mean of the old ones.
"""


@dataclass(frozen=True)
class Backbone:
    """Language model that was found, with its tokenizer.

    Args:
        network: Network, in the precision that it is stored in.
        tokenizer: Text tokenizer.
        left_over: Names of stored tensors that the network has no use for.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    left_over: tuple[str, ...] = ()

    @property
    def text_size(self) -> int:
        """Number of ids in front of the codes: all rows of the embedding table, those that pad it too."""
        rows = len(self.network.get_input_embeddings().weight)
        return max(rows, 1 + max(self.tokenizer.get_vocab().values()))

    @property
    def hidden_size(self) -> int:
        """Channels of the embeddings."""
        return int(self.network.get_input_embeddings().weight.shape[1])


def read_backbone(source: Path) -> Backbone:
    """Reads a causal language model of `transformers` from its folder, or from a GGUF file.

    Raises:
        ModelError: there is none, tensors or the tokenizer are missing, or training could not honour the network.
    """
    ggufs = [source] if source.suffix == ".gguf" else sorted(source.glob("*.gguf"))
    is_folder = (source / CONFIG).is_file()
    if not is_folder and len(ggufs) != 1:
        raise ModelError(f"no language model in {source}: name a folder with {CONFIG}, or a GGUF file")
    backbone = _read_folder(source) if is_folder else _read_gguf(ggufs[0])
    try:
        stops = stop_ids(backbone.tokenizer)
    except ValueError as error:
        raise ModelError(f"{source}: {error}") from None
    if not stops:
        raise ModelError(f"the tokenizer in {source} has no id that ends a text; set its eos_token")
    return backbone


def _check_family(source: Path, network: PreTrainedModel) -> None:
    """Raises ModelError if training could not honour a network; its weights are not needed."""
    check_trainable(network)
    if refused := unpackable(network):
        raise ModelError(
            f"{source} cannot be a backbone: the attention of {type(network).__name__} has {', '.join(refused)}, "
            "which packed documents cannot honour"
        )


def _read_folder(folder: Path) -> Backbone:
    from transformers import AutoTokenizer

    kind, config = language_model_class(folder)
    with naming_folder(folder):
        with torch.device("meta"):
            _check_family(folder, kind._from_config(copy.deepcopy(config), attn_implementation="eager"))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    network, info = load_language_model(folder)
    return _checked(folder, network, tokenizer, info)


def _read_gguf(file: Path) -> Backbone:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{file} is a GGUF file, which needs the package gguf: install `videolavit[gguf]`")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    # alone in a folder: `transformers` would follow adapters and tokenizers that a stranger put beside it
    with naming_folder(file), scratch_folder() as folder:
        (folder / file.name).symlink_to(file.resolve())
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        if hasattr(transformers, "GgufConfig"):  # from some version on, weights stay packed where kernels are installed
            source["quantization_config"] = transformers.GgufConfig(dequantize=True)
        network, info = AutoModelForCausalLM.from_pretrained(
            folder, **source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    quantizer = getattr(network, "hf_quantizer", None)
    if quantizer is not None:  # by which it would count as one that cannot be trained or saved
        quantizer.remove_quantization_config(network)
    _check_family(file, network)
    return _checked(file, network, tokenizer, info)


def _checked(source: Path, network: Any, tokenizer: Any, info: dict[str, Any]) -> Backbone:
    """Refuses what the library replaces by random numbers: tensors that are missing, or of another shape."""
    missing, misfits = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    if missing or misfits:
        listed = "".join(f"\n  {name}" for name in [*(f"missing {name}" for name in missing), *misfits][:20])
        raise ModelError(f"the weights in {source} do not fit a {type(network).__name__}:{listed}")
    return Backbone(network, tokenizer, tuple(sorted(info["unexpected_keys"])))


@torch.no_grad()
def grow(backbone: Backbone, size: int) -> tuple[str, ...]:
    """Gives a language model the rows of a larger vocabulary, in place, and the special ids of its tokenizer.

    Old rows keep their bits, tied tables stay tied. New rows are drawn about the mean of the rows that the tokenizer
    uses; the numbers follow from a fixed seed.

    Args:
        backbone: Language model with its tokenizer.
        size: Number of ids of the new vocabulary.

    Returns:
        Names of the tensors that have grown.
    """
    network, tokenizer = backbone.network, backbone.tokenizer
    rows = len(network.get_input_embeddings().weight)
    used = min(rows, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        network.resize_token_embeddings(size, mean_resizing=False)
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings()
    _draw_rows(embedding, rows, used, "embedding")
    if head.weight is not embedding:
        _draw_rows(head.weight, rows, used, "head")
    if head.bias is not None:
        head.bias[rows:] = head.bias[:used].mean()
    _set_special_ids(network, tokenizer)
    grown = {id(tensor) for tensor in (embedding, head.weight, head.bias) if tensor is not None}
    return tuple(name for name, one in network.named_parameters(remove_duplicate=False) if id(one) in grown)


def _draw_rows(table: Tensor, rows: int, used: int, purpose: str) -> None:
    old = table[:used].float()
    draws = torch.Generator().manual_seed(SEED ^ zlib.crc32(purpose.encode()))
    noise = torch.randn(len(table) - rows, table.shape[1], generator=draws)
    table[rows:] = (old.mean(0) + CODE_DEVIATION * old.std(0) * noise).to(table.dtype)


def _set_special_ids(network: Any, tokenizer: Any) -> None:
    """Writes the tokenizer's special ids into the configs, for code that reads them there."""
    from transformers import GenerationConfig

    stops = stop_ids(tokenizer)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in special.items():
        setattr(network.config, name, value)
    network.generation_config = GenerationConfig(**special)
