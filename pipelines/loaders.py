"""Samples of a training through Ray Data: CPU actors on any node decode, resize and encode them ahead of a worker.

    numbered micro batches -> actors that load their samples -> the worker, in order

Every worker has a dataset of its own. It numbers micro batches from the position in the data order at which the worker
starts, so that a resumed run continues exactly there, and no worker drops, repeats or waits for samples of another.
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

from videolavit.training.data import Item, Stream, StreamState
from videolavit.training.loader import RankSampler, RemoteLoader, load_item

READY_BYTES = 1 << 30
"""Bytes of loaded samples that may wait for a worker in the object store."""

TASKS_IN_FLIGHT = 4
"""Micro batches queued at an actor. With two, an actor would wait for the next one while order is kept."""


def ray_loader(stream: Stream, actors: int) -> RemoteLoader:
    """Loader of a stream's samples by CPU actors.

    Args:
        stream: Stream in its current state, with the networks that encode samples, if any; it is sent to the actors.
        actors: Number of actors, each with one core.
    """
    sent = ray.put(stream)

    def load(sampler: RankSampler, state: StreamState, steps: int) -> Generator[list[Any], None, None]:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # every row, a micro batch, is a block, so that none waits for the next
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(object_store_memory=READY_BYTES)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        numbers = _Numbers(steps * sampler.micro_batches)
        dataset = ray.data.read_datasource(numbers, override_num_blocks=1, ray_remote_args={"num_cpus": 0})
        dataset = dataset.map_batches(
            _LoadActor,
            fn_constructor_kwargs={"stream": sent, "sampler": sampler, "state": state},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT),
            num_cpus=1,
        )
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for expected, batch in enumerate(batches):
            if batch["number"].to_pylist() != [expected]:
                raise RuntimeError(f"micro batch {expected} was expected from Ray Data, not {batch['number']}")
            yield pickle.loads(batch["samples"][0].as_buffer())  # noqa: S301 - of our own actors, in the object store

    return load


class _Numbers(Datasource):  # type: ignore[misc]  # Ray's is untyped
    """Numbers 0, 1, 2, ..., one per block, generated as they are read."""

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

    def __init__(self, stream: "ray.ObjectRef[Stream]", sampler: RankSampler, state: StreamState) -> None:
        self._stream: Stream = ray.get(stream)
        self._sampler, self._state = sampler, state
        self._step, self._items = -1, list[list[Item]]()
        self._rewind()

    def __call__(self, batch: pa.Table) -> pa.Table:
        (number,) = batch["number"].to_pylist()
        step, micro_batch = divmod(number, self._sampler.micro_batches)
        if step < self._step:  # a retry
            self._rewind()
        while self._step < step:  # other actors load the steps in between
            self._items = self._sampler.take(self._stream)
            self._step += 1
        samples = [load_item(item) for item in self._items[micro_batch]]
        content = pa.array([pickle.dumps(samples, protocol=pickle.HIGHEST_PROTOCOL)], pa.large_binary())
        return pa.table({"number": [number], "samples": content})

    def _rewind(self) -> None:
        self._stream.seek(self._state)
        self._step = -1
