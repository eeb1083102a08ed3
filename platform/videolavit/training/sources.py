"""Clips of decompose runs, their keyframes, and images, as sources for training."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from videolavit.media import MediaError
from videolavit.recent import Recent
from videolavit.records.foreign import read_keyframe, read_picture
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import KINDS, PlanSettings
from videolavit.records.kinds.clips import ClipShard
from videolavit.records.kinds.image import image_bytes
from videolavit.records.listing import Listing
from videolavit.records.parquet import ParquetReader
from videolavit.records.rows import Source, sources_from
from videolavit.records.samples import SampleSettings, stored_clip
from videolavit.records.schema import RESERVED
from videolavit.records.storage import Folder, StorageSettings, open_source
from videolavit.records.table_reader import CorruptTable, TableReader

from .data import DATA_ORDER, DataError, Item, Mixture, SampleSource, SampleStream
from .parallel import Ranks
from .settings import TrainInputs

KEPT_GROUPS = 32
"""Row groups of a source that are kept in memory. In a clip shard each is a sample, of up to some 10 MB."""

KEPT_SHARDS = 1024
"""Shards whose numbers of clips are kept in memory, a few hundred bytes each."""

Tensors = dict[str, Tensor]

IMAGES_PER_SHARD = 256
"""Neighbouring images of a listing that make up a shard for the data order; on disk they are separate."""

_READERS = 16
_COLUMNS = ("sample_id", "source", "text", "start_seconds", "fps", "width", "height", "clips")


@dataclass(frozen=True, eq=False)
class ClipSample:
    """A stored clip.

    Attributes:
        sample_id: Id of the video or segment that holds the clip.
        source: Address of the video.
        text: Caption.
        sample_seconds: Start of the segment in the video, in seconds.
        fps: Frames per second.
        start_frame: First frame of the clip in the segment.
        width, height: Size of the frames, in pixels.
        keyframe: First frame as an image file; `records.foreign.read_keyframe` decodes it.
        motion: int16 [num_frames, blocks_high, blocks_wide, 2] in half pixels, x first.
    """

    sample_id: str
    source: str
    text: str | None
    sample_seconds: float
    fps: float
    start_frame: int
    width: int
    height: int
    keyframe: bytes
    motion: NDArray[np.int16]

    @property
    def num_frames(self) -> int:
        """Number of frames, up to 24."""
        return len(self.motion)

    @property
    def start_seconds(self) -> float:
        """Start of the clip in the video, in seconds."""
        return self.sample_seconds + self.start_frame / self.fps


def clip_sources(urls: Sequence[str], storage: StorageSettings) -> list[SampleSource]:
    """Sources of ClipSample, one for each run of `videolavit decompose` or clip shard. All ranks call it together.

    Raises:
        DataError: an input holds other data.
        InputError, StorageError: an input does not exist or cannot be read.
    """
    ranks = Ranks.here()
    return [_clip_source(url, ranks.from_first(partial(_listed, url, storage)), storage, ranks) for url in urls]


def picture_sources(urls: Sequence[str], storage: StorageSettings) -> list[SampleSource]:
    """Sources of pictures, uint8 [height, width, 3], one for each run (its keyframes) or corpus of images. All ranks
    call it together.

    Raises:
        DataError: an input holds other data.
        InputError, StorageError: an input does not exist or cannot be read.
    """
    ranks = Ranks.here()
    return [_picture_source(url, storage, ranks) for url in urls]


def sample_stream(sources: Sequence[SampleSource], inputs: TrainInputs) -> SampleStream:
    """Stream of the sources, mixed as the inputs say. Raises DataError."""
    return SampleStream(Mixture(sources, inputs.weights, seed=inputs.seed, window=inputs.window))


def validation_items(sources: Sequence[SampleSource], count: int) -> list[Item]:
    """Fixed choice of held-out samples, spread evenly over the sources.

    Their positions are negative, so that they share no random numbers with the training data.
    """
    places = [(source, shard) for source in sources for shard in range(len(source.sizes))]
    ends = np.cumsum([source.sizes[shard] for source, shard in places])
    total = int(ends[-1]) if places else 0
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)

    def item(position: int, source: SampleSource, shard: int, row: int) -> Item:
        return Item(position, source.name, lambda: source.load(shard, row))

    items = []
    for number, index in enumerate(chosen):
        place = int(np.searchsorted(ends, index, side="right"))
        source, shard = places[place]
        items.append(item(-1 - number, source, shard, int(index - ends[place] + source.sizes[shard])))
    return items


def data_identity(sources: Sequence[SampleSource]) -> dict[str, Any]:
    """Part of a component's identity: its sources and their order must be the same when a run is resumed, wherever they
    lie."""
    return {
        "data_order": DATA_ORDER,
        "sources": [
            {"name": source.name, "samples": int(sum(source.sizes)), "content": source.content} for source in sources
        ],
    }


def content_digest(listed: Iterable[str | int]) -> str:
    """Digest of what a source lists, as JSON values, without where it lies: 16 hexadecimal digits.

    Equal to that of one JSON list, which would hold millions of names at once.
    """
    digest, mark = hashlib.sha256(b"["), b""
    for one in listed:
        digest.update(mark + json.dumps(one).encode())
        mark = b", "
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _base_name(address: str) -> str:
    return address.rsplit("/", 1)[-1]


class ClipSource:
    """Clips of shards. The first rank counts those of each shard; the others open only the shards that they load from.

    Args:
        urls: Addresses of the shards.
        ranks: Ranks that open the shards together; by default this process does it alone.
    """

    def __init__(self, name: str, urls: Sequence[str], storage: StorageSettings, ranks: Ranks | None = None) -> None:
        self.name, self._urls, self._storage = name, list(urls), storage
        self._tables = TableReader(storage, KEPT_GROUPS)
        self._ends = Recent(self._clip_ends, KEPT_SHARDS)
        self.sizes: Sequence[int] = (ranks or Ranks()).from_first(self._count)
        self.content = content_digest([*map(_base_name, urls), *self.sizes])

    def _count(self) -> list[int]:
        """Number of clips of each shard. Raises DataError."""

        def number(url: str) -> int:
            try:
                return int(_clips_of_rows(url, self._storage).sum())
            except MediaError as error:
                raise DataError(f"cannot read the clip shard {url}: {error}; remove it or decompose again") from None

        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(number, self._urls))

    def _clip_ends(self, shard: int) -> NDArray[np.int64]:
        return np.cumsum(_clips_of_rows(self._urls[shard], self._storage))

    def load(self, shard: int, row: int) -> ClipSample:
        sample, index = self._place(shard, row)
        table = self._tables.row(self._urls[shard], sample, _COLUMNS)
        values = {name: table[name][0].as_py() for name in _COLUMNS if name != "clips"}
        clips = table["clips"].combine_chunks()
        keyframe, motion = stored_clip(clips, index)
        return ClipSample(
            sample_seconds=values.pop("start_seconds"),
            start_frame=clips.flatten()[index]["start_frame"].as_py(),
            keyframe=keyframe,
            motion=motion,
            **values,
        )

    def identify(self, shard: int, row: int) -> str:
        sample, index = self._place(shard, row)
        table = self._tables.row(self._urls[shard], sample, ("sample_id",))
        return f"{table['sample_id'][0].as_py()}#{index}"

    def _place(self, shard: int, row: int) -> tuple[int, int]:
        """Row of the shard that holds a clip, and number of the clip there."""
        ends = self._ends(shard)
        sample = int(np.searchsorted(ends, row, side="right"))
        return sample, row - (int(ends[sample - 1]) if sample else 0)


class MappedSource:
    """Results of a function for another source's samples."""

    def __init__(self, source: SampleSource, function: Callable[[Any], Any]) -> None:
        self.name, self.sizes, self.content = source.name, source.sizes, source.content
        self._source, self._function = source, function

    def load(self, shard: int, row: int) -> Any:
        return self._function(self._source.load(shard, row))

    def identify(self, shard: int, row: int) -> str:
        return self._source.identify(shard, row)


class CachedSource:
    """Results of a function, such as a frozen network, for another source's samples, which are stored in a folder.

    Args:
        folder: Folder with a safetensors file for each sample; None computes the tensors every time.
        identity: Everything that the tensors depend on beside the sample, as JSON values. Each identity has its files.
    """

    def __init__(
        self, source: SampleSource, function: Callable[[Any], Tensors], folder: Folder | None, identity: dict[str, Any]
    ) -> None:
        self.name, self.sizes, self.content = source.name, source.sizes, source.content
        self._source, self._function, self._folder = source, function, folder
        key = json.dumps([source.name, list(source.sizes), identity], sort_keys=True)
        self._key = hashlib.sha256(key.encode()).hexdigest()[:16]

    def load(self, shard: int, row: int) -> Tensors:
        if self._folder is None:
            return self._function(self._source.load(shard, row))
        name = f"{self._key}/{shard:05d}/{row:06d}.safetensors"
        if (stored := self._folder.read(name)) is None:
            tensors = self._function(self._source.load(shard, row))
            stored = save({key: value.cpu().contiguous() for key, value in tensors.items()})
            self._folder.create_bytes(name, stored)
        return load(stored)

    def identify(self, shard: int, row: int) -> str:
        return self._source.identify(shard, row)


class ImageSource:
    """Image files, members of tars, and images in tables.

    Args:
        images: Sources of images.
    """

    def __init__(self, name: str, images: Sequence[Source], storage: StorageSettings) -> None:
        self.name, self._images, self._storage = name, list(images), storage
        self._tables = TableReader(storage, KEPT_GROUPS)
        starts = range(0, len(images), IMAGES_PER_SHARD)
        self.sizes: Sequence[int] = [min(IMAGES_PER_SHARD, len(images) - start) for start in starts]
        self.content = content_digest([_base_name(image.source) for image in images])

    def load(self, shard: int, row: int) -> NDArray[np.uint8]:
        image = self._images[shard * IMAGES_PER_SHARD + row]
        return read_picture(image_bytes(image, self._storage, self._tables), self._storage)

    def identify(self, shard: int, row: int) -> str:
        return self._images[shard * IMAGES_PER_SHARD + row].source


def _clip_source(url: str, listed: Sequence[Source], storage: StorageSettings, ranks: Ranks) -> ClipSource:
    other = next((source for source in listed if source.kind != ClipShard.name), None)
    if other is not None:
        raise DataError(f"{url} holds no clips but {other.source}; make clips with `videolavit decompose`")
    return ClipSource(url, [source.url for source in listed], storage, ranks)


def _picture_source(url: str, storage: StorageSettings, ranks: Ranks) -> SampleSource:
    listed = ranks.from_first(partial(_listed, url, storage))
    if all(source.kind == ClipShard.name for source in listed):
        return MappedSource(_clip_source(url, listed, storage, ranks), lambda clip: read_keyframe(clip.keyframe))
    images = ranks.from_first(lambda: [image for source in listed for image in _images(source, storage)])
    return ImageSource(url, images, storage)


def _images(source: Source, storage: StorageSettings) -> list[Source]:
    """Images in a source."""
    kind = KINDS[source.kind]
    if kind.is_container:
        try:
            settings = PlanSettings(sample=SampleSettings(), inputs=InputSettings(modality="image"))
            inside = kind.expand(source, settings, storage)
        except MediaError as error:
            raise DataError(f"{source.url} cannot be listed: {error}") from None
        return [image for one in inside for image in _images(one, storage)]
    if kind.modality == "image":
        return [source]
    is_video = kind.modality == "video"
    hint = "make clips with `videolavit decompose` and name their run" if is_video else "leave it out"
    raise DataError(f"{source.source} is no image ({source.kind}); {hint}")


def _listed(url: str, storage: StorageSettings) -> list[Source]:
    listing = Listing([url], InputSettings(), storage, lambda kind: True, RESERVED, "train")
    return [source for batch in listing for source in sources_from(batch)]


def _clips_of_rows(url: str, storage: StorageSettings) -> NDArray[np.int64]:
    """Number of clips of each row of a shard; only that column is read. Raises MediaError."""
    try:
        with open_source(url, storage) as file:
            column = ParquetReader(file).read(columns=["num_clips"])["num_clips"]
    except pa.ArrowException as error:
        raise CorruptTable(str(error)) from None
    return np.asarray(column.to_numpy(), np.int64)
