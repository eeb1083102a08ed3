"""Prepared shards to rows of codes, by a model's tokenizers. Loads torch, as nothing else in this folder does."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError
from videolavit.models.visual_tokenizer import normalize_images

from . import schema
from .prepared import PreparedShard
from .tokenizer_info import TOKENIZER_PARTS, EncodeSettings, TokenizerInfo

Codes = NDArray[np.int32]


def read_tokenizers(model: str) -> TokenizerInfo:
    """Reads what must be known of a model's tokenizers.

    Raises:
        ModelError: there is no model, or it has no tokenizers.
    """
    folder = ModelFolder(model)
    visual, motion = (folder.config(part) for part in TOKENIZER_PARTS)
    return TokenizerInfo(
        digests={part: folder.digest(part) for part in TOKENIZER_PARTS},
        num_codes={"visual": visual.num_codes, "motion": motion.num_codes},
        picture_size=visual.image_size,
        motion_size=(motion.grid_height, motion.grid_width),
        codes_a_picture=visual.num_patches,
    )


class Encoder:
    """The tokenizers on a device.

    All batches of a kind have the same number of samples, the last one filled up, so that the arithmetic of a sample's
    codes does not depend on what is encoded with it.

    Args:
        tokenizers: Tokenizers of the run; a node whose model folder holds others is refused.

    Raises:
        ModelError: the model cannot be loaded or is another one.
    """

    def __init__(self, settings: EncodeSettings, tokenizers: TokenizerInfo, device: str) -> None:
        _make_repeatable(device)
        folder = ModelFolder(settings.model)
        for part in TOKENIZER_PARTS:
            if folder.digest(part) != tokenizers.digests[part]:
                raise ModelError(f"{settings.model} holds another {part} here than where the run was started")
        self._device, self._dtype = torch.device(device), getattr(torch, settings.dtype)
        self._visual, self._motion = (folder.load(part, self._device, self._dtype) for part in TOKENIZER_PARTS)
        self._batch = settings.batch(tokenizers, device)

    def pictures(self, pictures: NDArray[np.uint8]) -> list[Codes]:
        """The codes of each of uint8 [pictures, size, size, 3]; how many there are differs."""
        codes: list[Codes] = []
        for batch, real in self._batches(pictures):
            encoded = self._visual.encode(normalize_images(batch).to(self._dtype))
            codes += [_on_cpu(one) for one in encoded[:real]]
        return codes

    def motion(self, motion: NDArray[np.float32]) -> list[Codes]:
        """The codes of each of float32 [motions, 2, 24, height, width]."""
        codes: list[Codes] = []
        for batch, real in self._batches(motion):
            codes += list(_on_cpu(self._motion.encode(batch.to(self._dtype))[:real]))
        return codes

    @torch.inference_mode()
    def rows(self, shard: PreparedShard) -> pa.Table:
        """The shard's samples as rows of `schema.TOKENS` and their extra columns, with the work in the metadata.

        Raises:
            MemoryError: a batch does not fit the device.
        """
        try:
            return token_rows(shard, self.pictures(shard.pictures), self.motion(shard.motion))
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{error} Start again with a lower token budget and another output") from None

    def _batches(self, values: NDArray[Any]) -> Iterator[tuple[torch.Tensor, int]]:
        for start in range(0, len(values), self._batch):
            part = values[start : start + self._batch]
            batch = np.zeros((self._batch, *values.shape[1:]), values.dtype)
            batch[: len(part)] = part
            yield torch.from_numpy(batch).to(self._device), len(part)


def token_rows(shard: PreparedShard, visual: Sequence[Codes], motion: Sequence[Codes]) -> pa.Table:
    """Codes, in the order of the shard's pictures and motion, as rows of `schema.TOKENS` and the extra columns."""
    with_motion = np.repeat(shard.num_motions > 0, shard.num_pictures)
    remaining, none = iter(motion), np.zeros(0, np.int32)
    columns = [list(visual), [next(remaining) if has else none for has in with_motion]]
    lengths = sum(np.array([len(codes) for codes in column], np.int32) for column in columns)
    ends = np.concatenate([[0], np.cumsum(shard.num_pictures)])
    num_tokens = np.diff(np.concatenate([[0], np.cumsum(lengths)])[ends])
    structs = pa.StructArray.from_arrays([_lists(column) for column in columns], fields=list(schema.TOKEN_CLIP))
    rows = shard.samples.append_column("clips", pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs))
    rows = rows.append_column("num_tokens", pa.array(num_tokens, pa.int32()))
    return rows.replace_schema_metadata({schema.WORK_SECONDS: f"{shard.work_seconds:.6f}"})


def _lists(parts: Sequence[Codes]) -> pa.ListArray:
    ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate([np.zeros(0, np.int32), *parts]), pa.int32()))


def _on_cpu(codes: torch.Tensor) -> Codes:
    return np.asarray(codes.to("cpu", torch.int32).numpy())


def _make_repeatable(device: str) -> None:
    """Makes torch compute the same bits in every run, whatever else the machine does."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device == "cpu":
        torch.set_num_threads(1)
