"""Runs of `videolavit tokenize` as documents of a language model."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
from videolavit.records.shards import TOKENS, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.tokenizer_info import TOKENIZER_PARTS
from videolavit.vocabulary.sequences import DRAWS, Assembler, Ids, Piece, TokenSample

from .data import DataError, Mixture
from .packed import Document

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of texts, without special ones."""

_READERS = 16
_COLUMNS = ("text", "clips")


@dataclass(frozen=True, eq=False)
class _Lists:
    """Lists of integers end to end."""

    values: Ids
    ends: NDArray[np.int64]

    def __getitem__(self, index: int) -> Ids:
        return self.values[self.ends[index] : self.ends[index + 1]]

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.ends)


@dataclass(frozen=True, eq=False)
class _Shard:
    """A token shard in memory: `clips[row]` are the clips of a row."""

    text: _Lists
    clips: NDArray[np.int64]
    visual: _Lists
    motion: _Lists


class TokenSource:
    """Samples of a tokenizing run.

    Shards are held whole, some at a time: a sample's length is needed by every rank, long before one rank needs its
    codes.

    Args:
        url: Output of the run.
        encode: Of the language model's text tokenizer.
        kept: Shards in memory.

    Raises:
        DataError: there are no token shards.
    """

    def __init__(self, url: str, storage: StorageSettings, encode: Encode, kept: int = 32) -> None:
        self.name = url
        self._folder, self._encode = Folder(url, storage), encode
        self._names = [f"{TOKENS.folder}/{name}" for name in sorted(Ledger(self._folder, TOKENS).committed())]
        if not self._names:
            raise DataError(f"no token shards in {url}; make them with `videolavit tokenize`")
        with ThreadPoolExecutor(_READERS) as readers:
            footers = list(readers.map(self._footer, self._names))
        self.sizes: Sequence[int] = [rows for rows, _ in footers]
        self._metadata = [metadata for _, metadata in footers]
        self._shard = Recent(self._read, kept)

    def check(self, model: ModelFolder) -> None:
        """Raises DataError unless the model's own tokenizers made all shards."""
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
                        f"({digest[:12]}): the same codes mean something else. Tokenize again with --model "
                        f"{model.location}, or train the model that holds the other one"
                    )

    def lengths(self, shard: int, row: int) -> tuple[int, list[tuple[int, int]]]:
        """Ids of a sample's text, and visual and motion codes of each clip."""
        held = self._shard(shard)
        first, last = held.clips[row], held.clips[row + 1]
        visual, motion = (lists.ends[first : last + 1] for lists in (held.visual, held.motion))
        return len(held.text[row]), list(zip(np.diff(visual).tolist(), np.diff(motion).tolist(), strict=True))

    def load(self, shard: int, row: int) -> TokenSample:
        held = self._shard(shard)
        clips = [(held.visual[clip], held.motion[clip]) for clip in range(held.clips[row], held.clips[row + 1])]
        return TokenSample(held.text[row], clips)

    def _footer(self, name: str) -> tuple[int, dict[str, str]]:
        with self._folder.open(name) as file:
            footer = pq.read_metadata(file)
        metadata = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items()}
        if metadata.get(schema.KIND.decode()) != TOKENS.folder:
            raise DataError(f"{self.name}/{name} is no token shard; make one with `videolavit tokenize`")
        return footer.num_rows, metadata

    def _read(self, shard: int) -> _Shard:
        try:
            with self._folder.open(self._names[shard]) as file:
                table = pq.read_table(file, columns=list(_COLUMNS))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {self.name}/{self._names[shard]}: {error}") from None
        texts = self._encode([text or "" for text in table["text"].to_pylist()])
        flat = np.fromiter((token for text in texts for token in text), np.int64)
        clips = table["clips"].combine_chunks()
        structs = clips.flatten()
        return _Shard(
            text=_Lists(flat, _ends([len(text) for text in texts])),
            clips=_ends(_list_lengths(clips)),
            visual=_lists(structs.field("visual_tokens")),
            motion=_lists(structs.field("motion_tokens")),
        )


class TokenDocuments:
    """The sequences of a mixture of token runs, by position.

    Args:
        noise: Share of the codes that are read as random ones.
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
        """Of the sequences that the sample at a position becomes."""
        return [piece.length for piece in self._pieces(position)]

    def source(self, position: int) -> str:
        return self._sources[self._mixture.locate(position).source].name

    def load(self, position: int, index: int) -> Document:
        place = self._mixture.locate(position)
        source = self._sources[place.source]
        ids = self._assembler.ids(self._pieces(position)[index], source.load(place.shard, place.row))
        return Document(ids, source.name, self._noisy(ids, position, index) if self._noise else None)

    def _noisy(self, ids: Ids, position: int, index: int) -> Ids:
        rng = np.random.default_rng([self._seed, position, index])
        seen, replaced = ids.copy(), rng.random(len(ids)) < self._noise
        for codes in (self._assembler.vocabulary.visual_range, self._assembler.vocabulary.motion_range):
            chosen = replaced & (ids >= codes.start) & (ids < codes.stop)
            seen[chosen] = rng.integers(codes.start, codes.stop, int(chosen.sum()))
        return seen

    def _pieces(self, position: int) -> list[Piece]:
        place = self._mixture.locate(position)
        text, clips = self._sources[place.source].lengths(place.shard, place.row)
        draws = torch.rand(DRAWS, generator=generator_of(self._seed, "sequence", position)).tolist()
        return self._assembler.pieces(text, clips, draws)


def _lists(array: pa.ListArray) -> _Lists:
    return _Lists(np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.int64), _ends(_list_lengths(array)))


def _list_lengths(array: pa.ListArray) -> Sequence[int]:
    lengths: Sequence[int] = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return lengths


def _ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
