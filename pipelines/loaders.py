"""Samples of a training through Ray Data: decoded, resized and encoded by CPU actors on any node, ahead of a worker.

    micro batches, counted -> actors that load their samples -> the worker, in order

Every worker has a dataset of its own. It counts micro batches from the place in the data order at which the worker
starts, so that a run goes on exactly there, and no sample is split off, dropped or waited for by another worker.
"""

import logging
import pickle
from collections.abc import Generator, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from videolavit.training.data import Item, Stream
from videolavit.training.rank_share import RankShare, RemoteLoader, loaded

READY_BYTES = 1 << 30
"""Loaded samples that may wait for a worker, in the object store."""

TASKS_IN_FLIGHT = 4
"""Micro batches that an actor has been given. With two, an actor waits for the next while order is kept."""


def ray_feed(stream: Stream, loaders: int) -> RemoteLoader:
    """Loads a stream's samples by so many actors, one core each.

    Args:
        stream: Sent to the actors as it is now, with the networks that encode samples, if there are any.
    """
    sent = ray.put(stream)

    def feed(share: RankShare, state: dict[str, int], steps: int) -> Generator[list[Any], None, None]:
        dataset = _dataset({"stream": sent, "share": share, "state": state}, steps * share.parts, loaders)
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for expected, batch in enumerate(batches):
            if batch["number"].to_pylist() != [expected]:
                raise RuntimeError(f"micro batch {expected} was expected from Ray Data, not {batch['number']}")
            yield pickle.loads(batch["samples"][0].as_buffer())  # noqa: S301 - of our own actors, in the object store

    return feed


def _dataset(arguments: dict[str, Any], count: int, loaders: int) -> "ray.data.Dataset":
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a row, which is a micro batch, is a block: none waits for the next
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=READY_BYTES)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = ray.data.read_datasource(_Numbers(count), override_num_blocks=1, ray_remote_args={"num_cpus": 0})
    return numbers.map_batches(
        _LoadActor,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=loaders, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT),
        num_cpus=1,
    )


class _Numbers(Datasource):  # type: ignore[misc]  # Ray's is untyped
    """0, 1, 2 and so on, a block each; made as they are taken."""

    def __init__(self, count: int) -> None:
        self._count = count

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        def blocks() -> Iterator[pa.Table]:
            for number in range(self._count):
                yield pa.table({"number": [number]})

        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(blocks, unknown)]


class _LoadActor:
    """Loads micro batches by their numbers, which mostly come in order."""

    def __init__(self, stream: "ray.ObjectRef[Stream]", share: RankShare, state: dict[str, int]) -> None:
        self._stream: Stream = ray.get(stream)
        self._share, self._state = share, state
        self._rewind()

    def __call__(self, batch: pa.Table) -> pa.Table:
        (number,) = batch["number"].to_pylist()
        samples = [loaded(item) for item in self._items(*divmod(number, self._share.parts))]
        content = pa.array([pickle.dumps(samples, protocol=pickle.HIGHEST_PROTOCOL)], pa.large_binary())
        return pa.table({"number": [number], "samples": content})

    def _items(self, step: int, part: int) -> list[Item]:
        """The items of a micro batch. Those of steps between, which other actors have, are passed over unread."""
        if step < self._step:  # it is made again
            self._rewind()
        while self._step < step:
            self._parts = self._share.take(self._stream)
            self._step += 1
        return self._parts[part]

    def _rewind(self) -> None:
        self._stream.seek(self._state)
        self._step = -1
