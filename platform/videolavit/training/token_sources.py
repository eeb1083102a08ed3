"""Token shards of `videolavit tokenize` as documents of a language model.

Every rank needs the length of every sample, long before one of them needs the codes. Lengths come from the run's index,
so that a rank opens only the shards of its own samples, and encodes only their texts.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from videolavit.media import MediaError
from videolavit.media.errors import SourceUnreadable
from videolavit.models.folder import ModelFolder
from videolavit.models.objective import generator_of
from videolavit.recent import Recent
from videolavit.records.parquet import ParquetReader
from videolavit.records.shards import TOKEN_SHARDS
from videolavit.records.storage import Folder, StorageError, StorageSettings, naming_location
from videolavit.records.token_index import (
    INDEX_FOLDER,
    CodeLengths,
    ListedShards,
    NoTokenShard,
    TokenIndex,
    list_lengths,
)
from videolavit.records.tokenizer_info import TOKENIZER_PARTS
from videolavit.vocabulary.sequences import DRAWS, Assembler, Ids, Piece, TokenSample

from .data import DataError, Mixture
from .loader import STORAGE_WAIT_SECONDS, load_again
from .packed import Document
from .parallel import Ranks
from .sources import content_digest
from .texts import TextEncoder

SampleLengths = tuple[int, list[tuple[int, int]]]
"""Number of token ids of a sample's text, and of visual and motion codes of each clip."""

Read = TypeVar("Read")

_COLUMNS = ("text", "clips")
_FAULTS = (OSError, StorageError, pa.ArrowException, MediaError)


@dataclass(frozen=True, eq=False)
class _RaggedArray:
    """Lists of integers of different lengths, stored as one array."""

    values: Ids
    ends: NDArray[np.int64]

    def __getitem__(self, index: int) -> Ids:
        return self.values[self.ends[index] : self.ends[index + 1]]


@dataclass(frozen=True, eq=False)
class _Shard:
    """Token shard in memory. The clips of a row are `clips[row]` to `clips[row + 1] - 1`."""

    texts: list[str]
    clips: NDArray[np.int64]
    visual: _RaggedArray
    motion: _RaggedArray

    def lengths(self) -> CodeLengths:
        return CodeLengths(self.clips, np.diff(self.visual.ends), np.diff(self.motion.ends))


class TokenSource:
    """Samples of a run of `videolavit tokenize`.

    The first rank lists the run. Lengths of texts that its index lacks for the model's tokenizer are made once, divided
    among the ranks, and kept beside the index; where they cannot be written, and for shards that are not in the index,
    every rank reads the shards whose lengths it needs.

    Args:
        url: Output of the run.
        texts: Text tokenizer of the language model.
        cached_shards: Shards that are kept in memory.
        ranks: Ranks that open the run together; by default this process does it alone.

    Raises:
        DataError: the run has no token shards, or its index cannot be read.
    """

    def __init__(
        self,
        url: str,
        storage: StorageSettings,
        texts: TextEncoder,
        cached_shards: int = 64,
        ranks: Ranks | None = None,
    ) -> None:
        self.name = url
        self._folder, self._texts = Folder(url, storage), texts
        self._index = TokenIndex(self._folder)
        ranks = ranks or Ranks()
        self._listed, self.content = ranks.from_first(self._list)
        self.sizes: Sequence[int] = self._listed.rows.tolist()
        self._files_without_texts = self._count_texts(ranks)
        self._shard = Recent(self._read, cached_shards)
        self._sample_ids = Recent(self._read_sample_ids, 4)
        self._lengths = Recent(self._read_lengths, cached_shards)

    def check(self, model: ModelFolder) -> None:
        """Raises DataError unless all shards were made by the tokenizers of the model."""
        codes = {"visual": model.vocabulary.visual_codes, "motion": model.vocabulary.motion_codes}
        digests = {part: model.digest(part) for part in TOKENIZER_PARTS}
        for made_by, name in sorted(self._listed.makers.items(), key=lambda one: one[1]):
            shard, theirs = f"{self.name}/{TOKEN_SHARDS.folder}/{name}", json.loads(made_by)
            for kind, ours in codes.items():
                number = theirs[f"{kind}_codes"]
                if number != str(ours):
                    raise DataError(
                        f"{shard} has {number or 'no'} {kind} codes, the vocabulary of {model.location} has {ours}; "
                        f"train a model of that vocabulary, or tokenize again with this one"
                    )
            for part, digest in digests.items():
                if theirs[part] != digest:
                    raise DataError(
                        f"{shard} was made by another {part} ({theirs[part][:12]}) than that of {model.location} "
                        f"({digest[:12]}): the same codes mean something else. Tokenize again with the model "
                        f"{model.location}, or train the model that holds the other one"
                    )

    def lengths(self, shard: int, row: int) -> SampleLengths:
        """Lengths of a sample."""
        return self._lengths(shard)[row]

    def load(self, shard: int, row: int) -> TokenSample:
        tokens = self._shard(shard)
        clips = [(tokens.visual[clip], tokens.motion[clip]) for clip in range(tokens.clips[row], tokens.clips[row + 1])]
        (text,) = self._texts.ids([tokens.texts[row]])
        return TokenSample(np.asarray(text, np.int64), clips)

    def identify(self, shard: int, row: int) -> str:
        return self._sample_ids(shard)[row]

    def _list(self) -> tuple[ListedShards, str]:
        """The shards of the run, and the digest of what they hold."""
        try:
            listed = self._index.shards()
        except NoTokenShard as shard:
            raise DataError(
                f"{self.name}/{TOKEN_SHARDS.folder}/{shard} is no token shard; make one with `videolavit tokenize`"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"cannot read the shards of {self.name} and their index: {error}; {INDEX_FOLDER}/ is derived from the "
                "shards: without it the run can be trained on, and `videolavit tokenize` writes it again"
            ) from None
        if not len(listed):
            raise DataError(f"no token shards in {self.name}; make them with `videolavit tokenize`")
        names = (listed.name(shard) for shard in range(len(listed)))
        return listed, content_digest(itertools.chain(names, listed.rows.tolist()))

    def _count_texts(self, ranks: Ranks) -> frozenset[int]:
        """Makes the lengths of texts that are missing; returns the files of the index that stay without."""
        digest = self._texts.digest
        if digest is None:
            return frozenset()
        missing = ranks.from_first(partial(self._index.files_without_texts, digest))
        if not missing:
            return frozenset()
        # a run that cannot be written to; what cannot be read is reported when it is needed
        with contextlib.suppress(*_FAULTS):
            for number in missing[ranks.rank :: ranks.world]:
                self._index.add_texts(digest, number, self._texts.lengths)
        ranks.wait()
        return frozenset(ranks.from_first(partial(self._index.files_without_texts, digest)))

    def _read(self, shard: int) -> _Shard:
        table = self._again(partial(self._table, shard), shard)
        clips = table["clips"].combine_chunks()
        structs = clips.flatten()
        return _Shard(
            texts=[text or "" for text in table["text"].to_pylist()],
            clips=_ends(list_lengths(clips)),
            visual=_lists(structs.field("visual_tokens")),
            motion=_lists(structs.field("motion_tokens")),
        )

    def _read_lengths(self, shard: int) -> list[SampleLengths]:
        """Lengths of the samples of a shard."""
        file, digest = int(self._listed.files[shard]), self._texts.digest
        codes = self._again(partial(self._index.codes, self._listed, shard), shard) or self._shard(shard).lengths()
        if file < 0 or digest is None or file in self._files_without_texts:
            texts = self._texts.lengths(self._shard(shard).texts)
        else:
            texts = self._again(partial(self._index.texts, self._listed, shard, digest), shard).tolist()
        pairs = list(zip(codes.visual.tolist(), codes.motion.tolist(), strict=True))
        ends = codes.clips.tolist()
        return [(text, pairs[ends[row] : ends[row + 1]]) for row, text in enumerate(texts)]

    def _read_sample_ids(self, shard: int) -> list[str]:
        table = self._again(partial(self._table, shard, ("sample_id",)), shard)
        ids: list[str] = table["sample_id"].to_pylist()
        return ids

    def _table(self, shard: int, columns: Sequence[str] = _COLUMNS) -> pa.Table:
        with naming_location(self._folder.url), self._folder.open(self._listed.name(shard)) as file:
            return ParquetReader(file).read(columns=list(columns))

    def _again(self, read: Callable[[], Read], shard: int) -> Read:
        """Returns what a function reads of a shard or of its index, which is tried again; a remote storage that fails
        is waited for. Raises DataError."""
        load = partial(load_again, read, _FAULTS)
        pauses = () if self._folder.is_local else STORAGE_WAIT_SECONDS
        try:
            return load_again(load, (StorageError, SourceUnreadable), pauses)
        except _FAULTS as error:
            raise DataError(f"cannot read {self.name}/{self._listed.name(shard)}: {error}") from None


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
        return self._sources[self._mixture.source_at(position)].name

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
        np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.int64), _ends(list_lengths(array))
    )


def _ends(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
