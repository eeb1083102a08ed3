"""Shape of a language model made from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from ..network import STRICT

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageModelConfig:
    """Shape of a Llama made from scratch; the defaults are the published ones. A loaded model brings its own config.

    Args:
        text_size: Number of ids of the text tokenizer.
        hidden_size: Channels.
        intermediate_size: Channels inside an MLP.
        num_layers: Number of blocks.
        num_heads: Attention heads.
        num_kv_heads: Heads of keys and values; None for as many as `num_heads`.
        max_positions: Context length, in tokens.
        rms_norm_eps: Epsilon of the norms.
        rope_theta: Base of the rotary position embeddings.
    """

    text_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int | None = None
    max_positions: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def llama(self, vocabulary_size: int) -> LlamaConfig:
        """Returns the config of `transformers`, for a vocabulary of the given size."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads or self.num_heads,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=False,
            initializer_range=max(0.02, 0.7 * self.hidden_size**-0.5),  # 0.02 as published; more for narrow networks
            bos_token_id=1,
            eos_token_id=2,
        )
