"""Tiny language models of several families, with a text tokenizer that is trained here."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = ["a large red circle moves left fast", "user assistant what moves? A small blue star, slowly.", "?!.,:;"] * 3

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": False}),
    "qwen 2, tied and padded": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),
    "mistral with a window": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 24}),
    "gemma 3, tied": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"head_dim": 16, "sliding_window": 24}),
    "phi, with a bias in its head": ("PhiForCausalLM", "PhiConfig", {}),
    "qwen 3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16, "tie_word_embeddings": False}),
}
PADDING = {"qwen 2, tied and padded": 21}
"""Rows of the embedding table that the tokenizer does not use."""


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def text_tokenizer(template: str | None = CHATML, **options: Any) -> Any:
    """A byte-level BPE tokenizer as chat models have it."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        **options,
    )
    tokenizer.chat_template = template
    return tokenizer


def write_backbone(folder: Path, family: str, template: str | None = CHATML) -> Path:
    """Writes a language model as its authors would publish it."""
    tokenizer = text_tokenizer(template)
    kind, config, more = FAMILIES[family]
    rows = len(tokenizer) + PADDING.get(family, 0)
    torch.manual_seed(1)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    made = getattr(transformers, config)(**SHAPE, **more, **special, vocab_size=rows)
    model = getattr(transformers, kind)(made)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
