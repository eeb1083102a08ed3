"""The training loop. The same for every component, in one process or many, under Ray or without."""

import contextlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from videolavit.models.objective import Batch, Draws, to_device
from videolavit.records.identity import differences

from .checkpoint import CheckpointError, Checkpoints, Position
from .component import Component
from .data import DataError
from .interval import Interval, mean_terms, merged, summed
from .loader import Loader, StepData, fixed_batches
from .optimizer import AveragedWeights, Optimizer
from .parallel import Ranks, accumulate, autocast, forget_gathered, gathered, parallelize
from .rank_share import RankShare, RemoteLoader, SkippedSample
from .settings import TrainSettings
from .telemetry import Telemetry, Tracker, memory_bytes, peak_flops

CHECKPOINTS, SAMPLES, REJECTS, PROFILE = "checkpoints", "samples", "rejects.jsonl", "profile"
PROFILE_AFTER = 10

OnSave = Callable[[Path, dict[str, float]], None]
"""Called on every rank when a checkpoint is committed, with the last metrics."""


class Diverged(RuntimeError):
    """The gradient is not finite, step after step."""


class Trainer:
    """Trains a component into a folder, from its newest checkpoint there if it has one.

    Args:
        component: What is trained; on the CPU, not yet spread over ranks.
        settings: How.
        ranks: Of the run.
        folder: Of the run; all ranks see the same one.
        trackers: Further trackers than the settings name.
        line: Prints a line for people; given to the first rank only.
        on_save: See OnSave.
        feed: Loads samples in place of this process's threads.

    Raises:
        DataError: the batch or the ranks do not divide.
        CheckpointError: the folder holds a run of something else.
    """

    def __init__(
        self,
        component: Component,
        settings: TrainSettings,
        ranks: Ranks,
        folder: Path,
        *,
        trackers: Sequence[Tracker] = (),
        line: Callable[[str], None] = print,
        on_save: OnSave | None = None,
        feed: RemoteLoader | None = None,
    ) -> None:
        self.component, self.settings, self.ranks, self.folder = component, settings, ranks, folder
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._line = line if ranks.is_first else _silent
        self._on_save, self._feed = on_save, feed
        self._objective = component.objective.to(ranks.device)
        parallelize(self._objective, settings.parallel, ranks)
        self._optimizer = Optimizer(self._objective, settings.optimizer, settings.steps)
        decay = settings.optimizer.ema
        self._average = AveragedWeights(self._optimizer.named, decay) if decay else None
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, ranks, settings.keep, self._line)
        self._tokens: Counter[str] = Counter()  # of all ranks
        self._uncounted: Counter[str] = Counter()  # of this one, since they were summed last
        self._skipped = 0
        self._batch = _items_a_step(component, settings)
        self._facts = {**component.facts, "seed": settings.seed, "batch": self._batch}
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        named = list(settings.trackers) if ranks.is_first else []
        self._telemetry = (
            Telemetry(
                folder, [*named, *trackers], self._line, asdict(settings) | self._facts, self.step, settings.steps
            )
            if ranks.is_first
            else None
        )

    # ---- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the last step; validates, shows and saves on the way and at the end.

        Raises:
            Diverged: too many steps in a row without a finite gradient.
        """
        settings = self.settings
        share = RankShare(self._batch, settings.micro_batch, self.ranks.rank, self.ranks.world)
        loader = Loader(
            self.component.stream,
            self.component.collate,
            share,
            settings.steps - self.step,
            settings.loader_threads,
            settings.prefetch,
            self._feed,
        )
        interval = Interval()
        data = iter(loader)
        with contextlib.closing(data), self._profiler() as profiler:
            while self.step < settings.steps:
                norm = self._train(next_data := next(data), interval)
                interval.add(next_data, norm)
                for batch in next_data.batches:
                    self._uncounted.update(batch.tokens)
                self.step += 1
                self._note_rejects(next_data.rejects)
                profiler()
                if self._due(settings.log_every):
                    self._log(interval, loader)
                    interval, loader.wait_seconds = Interval(), 0.0
                self._save(next_data.state)  # before what may go wrong without harm to the weights
                if self._due(settings.validate_every) and self.component.validation:
                    self._validate()
                if self._due(settings.show_every) and self.component.show:
                    self._show()
        if self._telemetry is not None:
            self._telemetry.close()

    def _train(self, data: StepData, interval: "Interval") -> float:
        """One optimizer step; returns the norm of its gradient."""
        objective = self._objective
        objective.begin_step(self.step)
        counts = self.ranks.sums(summed([batch.counts for batch in data.batches]))
        for number, batch in enumerate(data.batches):
            accumulate(objective, last=number == len(data.batches) - 1)
            objective.train(batch.weight > 0)  # a stand-in leaves no trace in what is learned without a gradient
            with autocast(self.settings.parallel, self.ranks.device):
                sums = self._forward(batch)
            terms = [weight * sums[term] / max(counts[term], 1.0) for term, weight in objective.weights.items()]
            (batch.weight * torch.stack([term.float() for term in terms]).sum()).backward()
            interval.sums.append({term: value.detach() * batch.weight for term, value in sums.items()})
        norm = float(self._optimizer.clip())
        if math.isfinite(norm):
            self._skipped = 0
            self._optimizer.step(self.step)
            if self._average is not None:
                self._average.update(self.step)
            objective.after_step(self.ranks.sum)
        else:
            objective.drop_step()
            self._skip(norm)
        self._optimizer.zero_grad()
        return norm

    def _forward(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        draws = Draws(self.settings.seed if seed is None else seed, batch.positions, self.ranks.device)
        sums: dict[str, Tensor] = self._objective(to_device(batch.inputs, self.ranks.device), draws)
        return sums

    def _skip(self, norm: float) -> None:
        """Leaves a step out whose gradient is not finite; the norm, and so the decision, is the same on all ranks."""
        self._skipped += 1
        self._line(f"step {self.step + 1}: the gradient's norm is {norm}; the step is skipped")
        if self._skipped > self.settings.optimizer.max_skipped:
            raise Diverged(
                f"{self._skipped} steps in a row had no finite gradient. Lower optimizer.lr, or use float32; "
                "the last checkpoint is from before, if it is older than that"
            )

    # ---- beside it --------------------------------------------------------------------------------------------

    def _log(self, interval: Interval, loader: Loader) -> None:
        peak = peak_flops(self.ranks.device, self.settings.peak_flops)
        metrics = interval.metrics(self._objective.weights, self.ranks, peak)
        self._count_tokens()
        metrics |= {
            "lr": self.settings.optimizer.lr * self._optimizer.factor(self.step - 1),
            "data_wait": loader.wait_seconds / interval.seconds,
            "memory_gb": memory_bytes(self.ranks.device) / 1e9,
        }
        metrics |= {f"tokens/{name}": float(number) for name, number in self._tokens.items()}
        self._publish(metrics | self._objective.statistics())

    def _count_tokens(self) -> None:
        fresh = merged(dict(self._uncounted), self.ranks)
        self._tokens.update({name: int(number) for name, number in fresh.items()})
        self._uncounted.clear()

    @cached_property
    def _held_out(self) -> list[Batch]:
        return fixed_batches(
            self.component.validation,
            self.component.collate,
            self.settings.micro_batch,
            self.ranks.rank,
            self.ranks.world,
        )

    def _validate(self) -> None:
        """The terms over the fixed samples, with fixed random numbers and the averaged weights."""
        validation = self._held_out
        with self._as_saved(), torch.no_grad(), autocast(self.settings.parallel, self.ranks.device):
            sums = summed([{t: float(v) * b.weight for t, v in self._forward(b, 0).items()} for b in validation])
        totals = self.ranks.sums(sums)
        counts = self.ranks.sums(summed([batch.counts for batch in validation]))
        means = mean_terms(totals, counts, self._objective.weights)
        self._publish({f"validation/{name}": value for name, value in means.items()})

    def _show(self) -> None:
        assert self.component.show is not None
        name = f"step-{self.step:08d}" if self.ranks.is_first else f".rank-{self.ranks.rank}"
        folder = self.folder / SAMPLES / name
        folder.mkdir(parents=True, exist_ok=True)
        half = autocast(self.settings.parallel, self.ranks.device)
        with self._as_saved(), gathered(self._objective), torch.no_grad(), half:
            measured = self.component.show(self._objective, folder)
        if not self.ranks.is_first:
            shutil.rmtree(folder)
        self._publish({f"samples/{name}": value for name, value in measured.items()})

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the others, if there are any, for as long as the body lasts."""
        with self._average.in_place() if self._average is not None else contextlib.nullcontext():
            forget_gathered(self._objective)
            yield
        forget_gathered(self._objective)

    @contextlib.contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The objective as it would be saved."""
        self._objective.eval()
        with self.averaged():
            yield
        self._objective.train()

    def _publish(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics
        if self._telemetry is not None:
            self._telemetry.log(self.step, metrics)

    def _note_rejects(self, rejects: list[SkippedSample]) -> None:
        if rejects:
            self._line(f"{len(rejects)} samples cannot be used; the first: {rejects[0].source}: {rejects[0].message}")
            with (self.folder / REJECTS).open("a") as file:
                file.writelines(json.dumps({"step": self.step, **asdict(reject)}) + "\n" for reject in rejects)

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """Traces some steps into a file for a browser's trace viewer; yields what is called after each step."""
        if not self.settings.profile or not self.ranks.is_first:
            yield _nothing
            return
        target = self.folder / PROFILE
        schedule = torch.profiler.schedule(wait=PROFILE_AFTER, warmup=1, active=self.settings.profile, repeat=1)
        handler = torch.profiler.tensorboard_trace_handler(str(target))
        with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, profile_memory=True) as profile:
            yield profile.step

    def _due(self, every: int) -> bool:
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All state of the run that is tensors, by name."""
        fixed = {
            id(value) for network in self._objective.fixed() for value in network.state_dict(keep_vars=True).values()
        }
        model = self._objective.state_dict(keep_vars=True)
        tensors = {f"model.{name}": value.detach() for name, value in model.items() if id(value) not in fixed}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.values.items()}
        return tensors

    def _save(self, stream: dict[str, int]) -> None:
        """Begins a save where one is due, and commits one that is written."""
        last = self.step == self.settings.steps
        if self._due(self.settings.save_every):
            self._commit(wait=True)
            self._count_tokens()
            position = Position(self.step, stream, self._facts, dict(self._tokens), self._skipped)
            self._checkpoints.save(self.tensors(), position)
        if self._checkpoints.saving:
            self._commit(wait=last)

    def _commit(self, wait: bool) -> None:
        path = self._checkpoints.commit(wait)
        if path is not None and self._on_save is not None:
            self._on_save(path, self.metrics)

    def _resume(self) -> None:
        found = self._checkpoints.newest()
        if found is None:
            return
        path, position = found
        changed = differences(position.facts, json.loads(json.dumps(self._facts)))
        if changed:
            raise CheckpointError(
                f"{self.folder} holds another training. Choose another --output, or undo what differs (theirs -> ours):"
                + "".join(f"\n  {one}" for one in changed)
            )
        self._checkpoints.load(path, self.tensors())
        self.component.stream.seek(position.stream)
        self.step, self._skipped = position.step, position.skipped
        self._tokens = Counter(position.tokens)
        self._line(f"continues from {path.name}")


def _items_a_step(component: Component, settings: TrainSettings) -> int:
    if settings.batch_tokens is None:
        return settings.batch
    if not component.tokens_an_item:
        raise DataError("batch_tokens is for components with sequences; use batch")
    if settings.batch_tokens % component.tokens_an_item:
        raise DataError(f"batch_tokens must be a multiple of the sequence length, {component.tokens_an_item}")
    return settings.batch_tokens // component.tokens_an_item


def _silent(text: str) -> None:
    pass


def _nothing() -> None:
    pass
