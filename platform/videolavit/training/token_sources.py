"""Token shards of `videolavit tokenize` as documents of a language model."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from videolavit.models.folder import ModelFolder
from videolavit.models.objective import generator_of
from videolavit.recent import Recent
from videolavit.records import schema
from videolavit.records.parquet import ParquetReader
from videolavit.records.shards import TOKEN_SHARDS, Ledger
from videolavit.records.storage import Folder, StorageError, StorageSettings, naming_location
from videolavit.records.tokenizer_info import TOKENIZER_PARTS
from videolavit.vocabulary.sequences import DRAWS, Assembler, Ids, Piece, TokenSample

from .data import DataError, Mixture
from .loader import STORAGE_WAIT_SECONDS, load_again
from .packed import Document
from .sources import content_digest

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of texts, without special tokens."""

_READERS = 16
_COLUMNS = ("text", "clips")


@dataclass(frozen=True, eq=False)
class _RaggedArray:
    """Lists of integers of different lengths, stored as one array."""

    values: Ids
    ends: NDArray[np.int64]

    def __getitem__(self, index: int) -> Ids:
        return self.values[self.ends[index] : self.ends[index + 1]]

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.ends)


@dataclass(frozen=True, eq=False)
class _Shard:
    """Token shard in memory. The clips of a row are `clips[row]` to `clips[row + 1] - 1`."""

    text: _RaggedArray
    clips: NDArray[np.int64]
    visual: _RaggedArray
    motion: _RaggedArray


class TokenSource:
    """Samples of a run of `videolavit tokenize`.

    Whole shards are kept in memory: every rank needs the length of every sample, long before one of them needs the
    codes.

    Args:
        url: Output of the run.
        encode: Encodes texts with the language model's text tokenizer.
        cached_shards: Shards that are kept in memory.

    Raises:
        DataError: the run has no token shards.
    """

    def __init__(self, url: str, storage: StorageSettings, encode: Encode, cached_shards: int = 32) -> None:
        self.name = url
        self._folder, self._encode = Folder(url, storage), encode
        self._names = [
            f"{TOKEN_SHARDS.folder}/{name}" for name in sorted(Ledger(self._folder, TOKEN_SHARDS).committed())
        ]
        if not self._names:
            raise DataError(f"no token shards in {url}; make them with `videolavit tokenize`")
        with ThreadPoolExecutor(_READERS) as readers:
            footers = list(readers.map(self._footer, self._names))
        self.sizes: Sequence[int] = [rows for rows, _ in footers]
        self._metadata = [metadata for _, metadata in footers]
        self.content = content_digest([*self._names, *self.sizes])
        self._shard = Recent(self._read, cached_shards)
        self._sample_ids = Recent(self._read_sample_ids, 4)

    def check(self, model: ModelFolder) -> None:
        """Raises DataError unless all shards were made by the tokenizers of the model."""
        codes = {"visual": model.vocabulary.visual_codes, "motion": model.vocabulary.motion_codes}
        digests = {part: model.digest(part) for part in TOKENIZER_PARTS}
        for name, metadata in zip(self._names, self._metadata, strict=True):
            for kind, ours in codes.items():
                theirs = metadata.get(f"videolavit.{kind}_codes")
                if theirs != str(ours):
                    raise DataError(
                        f"{self.name}/{name} has {theirs} {kind} codes, the vocabulary of {model.location} has {ours}; "
                        f"train a model of that vocabulary, or tokenize again with this one"
                    )
            for part, digest in digests.items():
                made_by = metadata.get(f"videolavit.{part}", "")
                if made_by != digest:
                    raise DataError(
                        f"{self.name}/{name} was made by another {part} ({made_by[:12]}) than that of {model.location} "
                        f"({digest[:12]}): the same codes mean something else. Tokenize again with the model "
                        f"{model.location}, or train the model that holds the other one"
                    )

    def lengths(self, shard: int, row: int) -> tuple[int, list[tuple[int, int]]]:
        """Number of token ids of a sample's text, and of visual and motion codes of each clip."""
        tokens = self._shard(shard)
        first, last = tokens.clips[row], tokens.clips[row + 1]
        visual, motion = (codes.ends[first : last + 1] for codes in (tokens.visual, tokens.motion))
        return len(tokens.text[row]), list(zip(np.diff(visual).tolist(), np.diff(motion).tolist(), strict=True))

    def load(self, shard: int, row: int) -> TokenSample:
        tokens = self._shard(shard)
        clips = [(tokens.visual[clip], tokens.motion[clip]) for clip in range(tokens.clips[row], tokens.clips[row + 1])]
        return TokenSample(tokens.text[row], clips)

    def identify(self, shard: int, row: int) -> str:
        return self._sample_ids(shard)[row]

    def _footer(self, name: str) -> tuple[int, dict[str, str]]:
        with self._folder.open(name) as file:
            footer = pq.read_metadata(file)
        metadata = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items()}
        if metadata.get(schema.KIND.decode()) != TOKEN_SHARDS.folder:
            raise DataError(f"{self.name}/{name} is no token shard; make one with `videolavit tokenize`")
        return footer.num_rows, metadata

    def _table(self, shard: int, columns: Sequence[str] = _COLUMNS) -> pa.Table:
        with naming_location(self._folder.url), self._folder.open(self._names[shard]) as file:
            return ParquetReader(file).read(columns=list(columns))

    def _read_sample_ids(self, shard: int) -> list[str]:
        ids: list[str] = self._table(shard, ("sample_id",))["sample_id"].to_pylist()
        return ids

    def _read(self, shard: int) -> _Shard:
        faults = (OSError, StorageError, pa.ArrowException)
        load = partial(load_again, partial(self._table, shard), faults)
        try:
            table = load_again(load, (StorageError,), () if self._folder.is_local else STORAGE_WAIT_SECONDS)
        except faults as error:
            raise DataError(f"cannot read {self.name}/{self._names[shard]}: {error}") from None
        texts = self._encode([text or "" for text in table["text"].to_pylist()])
        flat = np.fromiter((token for text in texts for token in text), np.int64)
        clips = table["clips"].combine_chunks()
        structs = clips.flatten()
        return _Shard(
            text=_RaggedArray(flat, _ends([len(text) for text in texts])),
            clips=_ends(_list_lengths(clips)),
            visual=_lists(structs.field("visual_tokens")),
            motion=_lists(structs.field("motion_tokens")),
        )


class TokenDocuments:
    """Documents of a mixture of token runs, by position.

    Args:
        noise: Share of the visual and motion codes that are replaced by random ones in the model's input.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        mixture: Mixture,
        assembler: Assembler,
        seed: int,
        noise: float = 0.0,
    ) -> None:
        self._sources, self._mixture, self._assembler = list(sources), mixture, assembler
        self._seed, self._noise = seed, noise

    def lengths(self, position: int) -> list[int]:
        """Lengths of the documents of the sample at a position."""
        return [piece.length for piece in self._pieces(position)]

    def source(self, position: int) -> str:
        return self._sources[self._mixture.locate(position).source].name

    def identify(self, position: int) -> str:
        location = self._mixture.locate(position)
        return self._sources[location.source].identify(location.shard, location.row)

    def load(self, position: int, index: int) -> Document:
        location = self._mixture.locate(position)
        source = self._sources[location.source]
        ids = self._assembler.ids(self._pieces(position)[index], source.load(location.shard, location.row))
        return Document(ids, source.name, self._with_noise(ids, position, index) if self._noise else None)

    def _with_noise(self, ids: Ids, position: int, index: int) -> Ids:
        rng = np.random.default_rng([self._seed, position, index])
        input_ids, replaced = ids.copy(), rng.random(len(ids)) < self._noise
        for codes in (self._assembler.vocabulary.visual_range, self._assembler.vocabulary.motion_range):
            chosen = replaced & (ids >= codes.start) & (ids < codes.stop)
            input_ids[chosen] = rng.integers(codes.start, codes.stop, int(chosen.sum()))
        return input_ids

    def _pieces(self, position: int) -> list[Piece]:
        location = self._mixture.locate(position)
        text, clips = self._sources[location.source].lengths(location.shard, location.row)
        draws = torch.rand(DRAWS, generator=generator_of(self._seed, "sequence", position)).tolist()
        return self._assembler.pieces(text, clips, draws)


def _lists(array: pa.ListArray) -> _RaggedArray:
    return _RaggedArray(
        np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.int64), _ends(_list_lengths(array))
    )


def _list_lengths(array: pa.ListArray) -> Sequence[int]:
    lengths: Sequence[int] = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return lengths


def _ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
