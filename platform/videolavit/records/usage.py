"""Statistics of token shards: modalities, lengths, and usage of the codebooks."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from videolavit.perplexity import perplexity

from .parquet import ParquetReader

CODEBOOKS = ("visual", "motion")
Facts = list[tuple[str, str]]


@dataclass
class CodeUsage:
    """Number of occurrences of each code of a codebook.

    Attributes:
        counts: int64 [codes].
    """

    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def used(self) -> int:
        """Codes that occur."""
        return int(np.count_nonzero(self.counts))

    @property
    def perplexity(self) -> float:
        """Number of equally frequent codes with the same entropy; 0 without any code."""
        return perplexity(self.counts)


@dataclass
class TokenStatistics:
    """Adds up token shards.

    Attributes:
        usage: Code counts of each codebook.
        modalities: Number of samples of each modality.
        lengths: Values of each distribution, by its name; one array per shard.
    """

    usage: dict[str, CodeUsage] = field(
        default_factory=lambda: {name: CodeUsage(np.zeros(0, np.int64)) for name in CODEBOOKS}
    )
    modalities: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def add(self, shard: ParquetReader) -> None:
        """Adds an open token shard."""
        table = shard.read(columns=["modality", "text", "clips", "num_tokens"])
        metadata = shard.schema_arrow.metadata or {}
        modality = table["modality"].combine_chunks()
        self.modalities.update(modality.to_pylist())
        clips = table["clips"].combine_chunks()
        structs = clips.flatten()
        for name in CODEBOOKS:
            codes = structs.field(f"{name}_tokens").flatten().to_numpy()
            self._count(name, codes, int(metadata.get(f"videolavit.{name}_codes".encode(), b"0")))
        is_video, is_text = pc.equal(modality, "video"), pc.equal(modality, "text")
        self._measure("visual codes of a picture", pc.list_value_length(structs.field("visual_tokens")))
        self._measure("clips of a video", pc.list_value_length(clips.filter(is_video)))
        self._measure("codes of a video", table["num_tokens"].filter(is_video))
        self._measure("characters of a text", pc.utf8_length(table["text"].filter(is_text)))

    def values(self) -> dict[str, NDArray[Any]]:
        """Each distribution as one array; those without a value are left out."""
        joined = {name: np.concatenate(parts) for name, parts in self.lengths.items()}
        return {name: values for name, values in joined.items() if len(values)}

    def facts(self) -> Facts:
        """Lines for people."""
        facts: Facts = [(f"{kind} samples", f"{self.modalities[kind]:,}") for kind in ("video", "image", "text")]
        for name, usage in self.usage.items():
            size = len(usage.counts)
            share = f"{usage.used:,} of {size:,} ({usage.used / size:.1%})" if size else "none"
            facts += [
                (f"{name} codes", f"{usage.total:,}"),
                (f"{name} codebook used", share),
                (f"{name} perplexity", f"{usage.perplexity:,.1f}"),
            ]
        for name, values in self.values().items():
            spread = f"{values.min():,} to {values.max():,}, median {np.median(values):,g}, mean {values.mean():,.1f}"
            facts.append((name, spread))
        return facts

    def _count(self, name: str, codes: NDArray[np.int32], size: int) -> None:
        before = self.usage[name].counts
        counts = np.bincount(codes, minlength=max(size, len(before)))
        counts[: len(before)] += before
        self.usage[name] = CodeUsage(counts)

    def _measure(self, name: str, values: Any) -> None:
        self.lengths.setdefault(name, []).append(values.to_numpy(zero_copy_only=False))
