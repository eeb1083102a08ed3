"""What frozen networks make of samples, kept in a folder: later epochs read it instead of computing it."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from videolavit.records.storage import Folder

from .data import SampleSource

Tensors = dict[str, Tensor]


class CachedSource:
    """Tensors that a function makes of another source's samples.

    Args:
        folder: Where they are kept, a safetensors file a sample; None computes them every time.
        identity: All that the tensors depend on beside the sample, as JSON values. Another one has other files.
    """

    def __init__(
        self, source: SampleSource, function: Callable[[Any], Tensors], folder: Folder | None, identity: dict[str, Any]
    ) -> None:
        self.name, self.sizes = source.name, source.sizes
        self._source, self._function, self._folder = source, function, folder
        key = json.dumps([source.name, list(source.sizes), identity], sort_keys=True)
        self._key = hashlib.sha256(key.encode()).hexdigest()[:16]

    def load(self, shard: int, row: int) -> Tensors:
        if self._folder is None:
            return self._function(self._source.load(shard, row))
        name = f"{self._key}/{shard:05d}/{row:06d}.safetensors"
        if (stored := self._folder.read(name)) is None:
            made = self._function(self._source.load(shard, row))
            stored = save({key: value.cpu().contiguous() for key, value in made.items()})
            self._folder.create_bytes(name, stored)
        return load(stored)
