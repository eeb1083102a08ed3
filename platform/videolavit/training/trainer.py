"""The training loop: one for all components, in a single process or on many ranks, under Ray Train or without."""

import contextlib
import json
import math
import shutil
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videolavit.models.objective import SAMPLE_LOSSES, Batch, Draws, Objective, to_device
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.storage import Folder, StorageSettings

from .checkpoint import CHECKPOINTS, Checkpoints, RemoteCheckpoints, RunState
from .component import Component
from .continuing import content_of
from .data import DataError, StreamState, joined
from .loader import Loader, RankSampler, RemoteLoader, SkippedSample, StepData, load_items, validation_batches
from .metrics import (
    Interval,
    MetricsLog,
    Tracker,
    keep_lines,
    log_line,
    logged_at,
    mean_terms,
    memory_bytes,
    peak_flops,
    sum_values,
)
from .optimizer import WEIGHT_PREFIX, Optimizer
from .parallel import Ranks, autocast, parallelize, reshard, sync_gradients, unsharded
from .rejects import SKIPPED, RejectWindow
from .resuming import changes, refused
from .selection import select_trainable
from .settings import TrainSettings

TRAIN_STAGE = "train"
"""Stage of the progress that a training reports."""

SAMPLES, PROFILE = "samples", "profile"
PROFILE_AFTER = 10
"""Steps before the first one that is profiled."""

VALIDATION = "validation"
"""First part of the names of metrics of the validation; those of samples begin with SAMPLES."""

ShouldStop = Callable[[], bool]
"""Called on every rank after each step; True asks the run to save and stop."""

_REJECTED = "rejected samples"


class Diverged(RuntimeError):
    """Too many consecutive steps had a gradient that was not finite."""


class Stopped(RuntimeError):
    """The run was asked to stop, and saved its last step."""


def never_stop() -> bool:
    """Lets a run go on to its last step."""
    return False


class Trainer:
    """Trains a component. A run whose folder holds a checkpoint continues from it.

    Args:
        component: Component on the CPU, not sharded yet.
        settings: Settings of the loop.
        ranks: Ranks of the run.
        folder: Folder of the run, on storage that all ranks share.
        trackers: Trackers in addition to those that the settings name.
        on_progress: Receives each line of metrics, on the first rank.
        remote_loader: Loads samples instead of threads of this process.
        should_stop: Asked after every step; once it is true on any rank, all save and stop.
        remote: Remote counterpart of the folder, which then is one of this rank alone.
        replays: Step that is computed again with `replay`, from the checkpoint before it; nothing is written then.

    Raises:
        DataError: the batch or the ranks cannot be divided, a pattern matches no parameter, or no validation sample can
            be used.
        CheckpointError: the folder holds another run.
    """

    def __init__(
        self,
        component: Component,
        settings: TrainSettings,
        ranks: Ranks,
        folder: Path,
        *,
        trackers: Sequence[Tracker] = (),
        on_progress: OnProgress = ignore_progress,
        remote_loader: RemoteLoader | None = None,
        should_stop: ShouldStop = never_stop,
        replays: int | None = None,
        remote: RemoteCheckpoints | None = None,
    ) -> None:
        self.component, self.settings, self.ranks, self.folder = component, settings, ranks, folder
        self.step = 0
        self._on_progress = on_progress if ranks.is_first else ignore_progress
        self._remote_loader, self._should_stop = remote_loader, should_stop
        self._replays = replays
        self._tokens: Counter[str] = Counter()  # sums of all ranks
        self._new_tokens: Counter[str] = Counter()  # sums of this rank, not added to those of all ranks yet
        self._skipped_steps = 0
        # elsewhere than on a GPU nothing runs ahead, and what is learned without a gradient needs the verdict
        learns_aside = type(component.objective).after_step is not Objective.after_step
        self._judges_at_once = ranks.device.type != "cuda" or learns_aside
        self._unjudged: deque[tuple[int, Tensor]] = deque()  # steps and norms of their gradients
        self._save_is_due = False
        self._saved_step = 0
        self._batch = settings.batch
        if settings.batch_tokens is not None:
            length = component.tokens_per_item
            if not length:
                raise DataError("batch_tokens is for components with sequences; use batch")
            if settings.batch_tokens % length:
                raise DataError(f"batch_tokens must be a multiple of the sequence length, {length}")
            self._batch = settings.batch_tokens // length
        self._rejects = RejectWindow(self._batch, settings.max_rejects)
        if settings.keep_best is not None and not (
            component.validation and settings.keep_best.startswith(f"{VALIDATION}/")
        ):
            raise DataError(f"keep_best is a metric of the validation, such as {VALIDATION}/loss, and needs its data")
        self._objective = component.objective
        if component.fill is None:
            self._objective.to(ranks.device)
        select_trainable(self._objective, settings.trainable)
        parallelize(self._objective, settings.parallel, ranks)
        if component.fill is not None:
            component.fill(ranks.host_group)
        if component.validation:  # here and not in an hour
            load_items(component.validation, limit=1)
        self._optimizer = Optimizer(self._objective, settings.optimizer, settings.steps)
        self._identity = {**component.identity, "seed": settings.seed, "batch": self._batch}
        if settings.trainable:
            self._identity["trainable"] = sorted(settings.trainable)
        origin = Path(settings.continue_from) if settings.continue_from is not None else None
        if origin is not None:
            self._identity["begun_from"] = {"checkpoint": content_of(origin), "moments": settings.continue_moments}
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, ranks, settings.keep, self._report, remote)
        if replays is None:
            folder.mkdir(parents=True, exist_ok=True)
            resumed = self._checkpoints.resume(self.tensors(), self._refused_changes, settings.resume_from)
        else:
            resumed = self._checkpoints.load_before(replays, self.tensors(), self._refused_changes)
        has_average = resumed is None or resumed.has_average
        if resumed is None and origin is not None:
            has_average = self._checkpoints.begin_from(origin, self.tensors(), moments=settings.continue_moments)
        if not has_average:
            self._optimizer.restart_average()
        if resumed is not None:
            state = resumed.state
            component.stream.seek(state.stream)
            self._saved_step = state.step
            self.step, self._skipped_steps, self._tokens = state.step, state.skipped, Counter(state.tokens)
            self._report(f"continues from {resumed.name}")
        self._metrics_log: MetricsLog | None = None
        if ranks.is_first and replays is None:
            config = asdict(settings) | self._identity
            self._metrics_log = MetricsLog(folder, [*settings.trackers, *trackers], config, self.step)
            keep_lines(folder / SKIPPED, self.step)  # later ones are skipped again

    # ---- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the last step; validates, writes samples and saves on the way and at the end.

        Raises:
            Diverged: too many consecutive steps without a finite gradient.
            Stopped: it was asked to stop. A checkpoint holds the last step.
            TooManyRejects: too many samples could not be used. A checkpoint holds the last step.
        """
        settings = self.settings
        if self.step:  # an earlier start may have ended between its save and this
            folder = Folder(str(self.folder), StorageSettings())
            self._evaluate(self.ranks.from_first(lambda: list(logged_at(folder, self.step))))
        loader = self._loader(settings.steps)
        interval = Interval()
        steps = iter(loader)
        ending, stream = self._ending(), self.component.stream.state()
        with contextlib.closing(steps), self._profiler() as profile_step:
            while self.step < settings.steps and ending is None:
                data = self._next(steps, stream)
                stream = data.state
                interval.add(data, self._train(data, interval))
                for batch in data.batches:
                    self._new_tokens.update(batch.tokens)
                self.step += 1
                self._record_skipped(data.skipped)
                profile_step()
                if self._due(settings.log_every):
                    self._log(interval, loader.wait_seconds)
                    interval, loader.wait_seconds = Interval(), 0.0
                ending = self._ending()
                # before validation and samples, whose failure does not touch the weights
                self._save(data.state, is_last=ending is not None or self.step == settings.steps)
                if ending is None:
                    self._evaluate(())
        if self._metrics_log is not None:
            self._metrics_log.close()
        if ending is not None:
            raise ending

    def replay(self) -> tuple[StepData, Interval, float | None]:
        """Trains up to the step that is replayed, without a log and without saving.

        Returns:
            Data of the step on this rank, what was measured in it, and the norm of its gradient; None without data.
        """
        assert self._replays is not None
        with contextlib.closing(iter(self._loader(self._replays))) as steps:
            for data in steps:
                interval = Interval()
                norm = self._train(data, interval)
                interval.add(data, norm)
                self.step += 1
        self._judge()
        return data, interval, None if norm is None else float(norm)

    def _loader(self, last: int) -> Loader:
        """Loader of the steps from this one to the last."""
        settings = self.settings
        return Loader(
            self.component.stream,
            self.component.collate,
            RankSampler(self._batch, settings.micro_batch, self.ranks.rank, self.ranks.world),
            last - self.step,
            settings.loader_threads,
            settings.prefetch,
            self._remote_loader,
        )

    def _next(self, steps: Iterator[StepData], stream: StreamState) -> StepData:
        """Data of the next step. A single rank saves where they cannot be read; several would wait for each other.

        Args:
            stream: State of this rank's stream after the last step.
        """
        try:
            return next(steps)
        except DataError:
            if self.ranks.world == 1 and self._saved_step != self.step:
                self._save(stream, is_last=True)
            raise

    def _ending(self) -> Exception | None:
        """Reason to end before the last step, which all ranks agree on."""
        if self.step == self.settings.steps:
            return None
        if self.ranks.any(self._should_stop()):
            return Stopped(f"stopped after step {self.step}, which is saved")
        return self._rejects.ending(self.step)

    def _train(self, data: StepData, interval: Interval) -> Tensor | None:
        """One optimizer step, with gradient accumulation over the micro batches.

        Returns:
            Norm of the gradient; None for a step without data, which changes nothing.
        """
        objective = self._objective
        objective.begin_step(self.step)
        own = sum_values([batch.counts for batch in data.batches])
        counts = self.ranks.sums(own | {_REJECTED: float(len(data.skipped))})
        self._rejects.add(int(counts.pop(_REJECTED)))
        if not any(counts.values()):
            objective.drop_step()
            return None
        for number, batch in enumerate(data.batches):
            sync_gradients(objective, enabled=number == len(data.batches) - 1)
            objective.train(batch.weight > 0)  # a placeholder must not change codebooks, which learn in training mode
            with autocast(self.settings.parallel, self.ranks.device):
                sums = self._forward(batch, self.settings.seed)
            losses = sums.pop(SAMPLE_LOSSES, None)
            if losses is not None and batch.weight:
                interval.losses.append((batch.sources, losses))
            terms = [weight * sums[term] / max(counts[term], 1.0) for term, weight in objective.weights.items()]
            (batch.weight * torch.stack([term.float() for term in terms]).sum()).backward()
            interval.sums.append({term: value.detach() * batch.weight for term, value in sums.items()})
        norm = self._optimizer.clip()
        self._optimizer.step(self.step, norm)
        self._unjudged.append((self.step, norm))
        self._judge(leave=0 if self._judges_at_once else 1)
        self._optimizer.zero_grad()
        return norm

    def _judge(self, leave: int = 0) -> None:
        """Counts the steps that the optimizer skipped because their gradient was not finite.

        Reading a norm waits for its step. On a GPU that of the step before is read, while the next one runs.

        Args:
            leave: Newest steps that are left for later.
        """
        objective = self._objective
        while len(self._unjudged) > leave:
            step, of_step = self._unjudged.popleft()
            norm = float(of_step)  # equal on all ranks, and so is the verdict
            if math.isfinite(norm):
                self._skipped_steps = 0
                objective.after_step(self.ranks.sum)
                continue
            objective.drop_step()
            self._skipped_steps += 1
            self._report(f"step {step + 1}: the gradient's norm is {norm}; the step is skipped")
            if self._skipped_steps > self.settings.optimizer.max_skipped and self._replays is None:
                self._checkpoints.commit(wait=True)
                saved = ", ".join(str(step) for step in self._checkpoints.steps()) or "none"
                raise Diverged(
                    f"{self._skipped_steps} steps in a row had no finite gradient. Lower optimizer.lr, or use float32, "
                    f"and continue from a checkpoint before them with resume_from; there are those of the steps {saved}"
                )

    def _forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        draws = Draws(seed, batch.positions, self.ranks.device)
        sums: dict[str, Tensor] = self._objective(to_device(batch.inputs, self.ranks.device), draws)
        return sums

    def _due(self, every: int) -> bool:
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    # ---- metrics ----------------------------------------------------------------------------------------------

    def _log(self, interval: Interval, wait_seconds: float) -> None:
        peak = peak_flops(self.ranks.device, self.settings.peak_flops)
        metrics = interval.metrics(self._objective.weights, self.ranks, peak)
        self._count_tokens()
        metrics |= {
            "lr": self.settings.optimizer.lr * self._optimizer.lr_factor(self.step - 1),
            "data_wait": wait_seconds / interval.seconds,
            "memory_gb": memory_bytes(self.ranks.device) / 1e9,
        }
        metrics |= {f"tokens/{name}": float(number) for name, number in self._tokens.items()}
        self._publish(metrics | self._objective.statistics())

    def _count_tokens(self) -> None:
        """Adds the tokens of all ranks since the last call to the total."""
        new = self.ranks.sum_counts(self._new_tokens)
        self._tokens.update({name: int(number) for name, number in new.items()})
        self._new_tokens.clear()

    def _publish(self, metrics: dict[str, float]) -> None:
        if self._metrics_log is not None:
            self._metrics_log.write(self.step, metrics)
            self._report(log_line(self.step, self.settings.steps, metrics))

    def _report(self, message: str) -> None:
        self._on_progress(Progress(TRAIN_STAGE, self.step, self.settings.steps, message))

    def _record_skipped(self, own: list[SkippedSample]) -> None:
        """Records the samples of a step that could not be used, those of all ranks."""
        if not self._rejects.last:
            return
        skipped = [sample for of_rank in self.ranks.gather(own) for sample in of_rank]
        if self.ranks.is_first:
            self._report(f"{len(skipped)} samples cannot be used; the first: {skipped[0].source}: {skipped[0].message}")
            with (self.folder / SKIPPED).open("a") as file:
                file.writelines(json.dumps({"step": self.step, **asdict(sample)}) + "\n" for sample in skipped)

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """Traces some steps for a trace viewer; yields a function to call after each step."""
        if not self.settings.profile or not self.ranks.is_first:
            yield lambda: None
            return
        schedule = torch.profiler.schedule(wait=PROFILE_AFTER, warmup=1, active=self.settings.profile, repeat=1)
        handler = torch.profiler.tensorboard_trace_handler(str(self.folder / PROFILE))
        with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, profile_memory=True) as profile:
            yield profile.step

    # ---- validation and samples -------------------------------------------------------------------------------

    def _evaluate(self, logged: Collection[str]) -> None:
        """Validates and writes samples where they are due.

        Args:
            logged: Names of the metrics that the step has already.
        """
        component, settings = self.component, self.settings
        begun = {name.partition("/")[0] for name in logged}
        if component.validation and self._due(settings.validate_every) and VALIDATION not in begun:
            self._validate()
        if component.write_samples and self._due(settings.show_every) and SAMPLES not in begun:
            self._write_samples()

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Evaluation mode, with the averaged weights if there are any, in the body of the `with` statement."""
        self._objective.eval()
        with self._optimizer.averaged():
            reshard(self._objective)
            yield
        reshard(self._objective)
        self._objective.train()

    @cached_property
    def _validation(self) -> list[Batch]:
        component, ranks = self.component, self.ranks
        micro_batch = self.settings.micro_batch
        return validation_batches(component.validation, component.collate, micro_batch, ranks.rank, ranks.world)

    def _validate(self) -> None:
        """Loss of the fixed held-out samples, with fixed random numbers and the averaged weights."""
        batches = self._validation
        sums: list[dict[str, float]] = []
        with self.averaged_weights(), torch.no_grad(), autocast(self.settings.parallel, self.ranks.device):
            for batch in batches:
                terms = self._forward(batch, seed=0)
                sums.append({term: float(terms[term]) * batch.weight for term in terms.keys() - {SAMPLE_LOSSES}})
        totals = self.ranks.sums(sum_values(sums))
        counts = self.ranks.sums(sum_values([batch.counts for batch in batches]))
        means = mean_terms(totals, counts, self._objective.weights)
        metrics = {f"{VALIDATION}/{name}": value for name, value in means.items()}
        self._publish(metrics)
        self._keep_best(metrics)

    def _keep_best(self, metrics: dict[str, float]) -> None:
        """Keeps the checkpoint of this step if it is the best by the metric that the settings name."""
        name = self.settings.keep_best
        if name is None:
            return
        if name not in metrics:
            raise DataError(f"keep_best is {name}, which is not measured; there are {', '.join(metrics)}")
        if self._saved_step == self.step and self._checkpoints.note_best(self.step, metrics[name]):
            self._report(f"the best {name} so far: {metrics[name]:.4g}")

    def _write_samples(self) -> None:
        """Writes samples on every rank, since the ranks gather the weights together; those of the first are kept."""
        assert self.component.write_samples is not None
        name = f"step-{self.step:08d}" if self.ranks.is_first else f".rank-{self.ranks.rank}"
        folder = self.folder / SAMPLES / name
        folder.mkdir(parents=True, exist_ok=True)
        precision = autocast(self.settings.parallel, self.ranks.device)
        with self.averaged_weights(), unsharded(self._objective), torch.no_grad(), precision:
            metrics = self.component.write_samples(self._objective, folder)
        if not self.ranks.is_first:
            shutil.rmtree(folder)
        self._publish({f"{SAMPLES}/{name}": value for name, value in metrics.items()})

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint, by name: weights, optimizer state, averaged weights."""
        fixed = {
            id(value) for network in self._objective.fixed() for value in network.state_dict(keep_vars=True).values()
        }
        model = self._objective.state_dict(keep_vars=True)
        tensors = {f"{WEIGHT_PREFIX}{name}": value.detach() for name, value in model.items() if id(value) not in fixed}
        return tensors | self._optimizer.tensors()

    def _save(self, stream: StreamState, is_last: bool) -> None:
        """Begins a save where one is due, and commits one whose files are written.

        While steps are skipped a save waits for the next that is not: the weights may be broken.
        """
        validates = self.settings.keep_best is not None and self._due(self.settings.validate_every)
        self._save_is_due |= self._due(self.settings.save_every) or validates
        if is_last or self._save_is_due:
            self._judge()
        if is_last or (self._save_is_due and not self._skipped_steps):
            self._checkpoints.commit(wait=True)
            self._count_tokens()
            state = RunState(
                self.step,
                joined(self.ranks.gather(stream)),
                self._identity,
                dict(self._tokens),
                self._skipped_steps,
                self.settings.resume_from,
            )
            self._checkpoints.save(self.tensors(), state)
            self._save_is_due, self._saved_step = False, self.step
        if self._checkpoints.saving:
            self._checkpoints.commit(wait=is_last)

    def _refused_changes(self, theirs: dict[str, Any]) -> Mapping[str, str]:
        """Changes since a checkpoint was made that decide results and are not accepted."""
        ours = json.loads(json.dumps(self._identity))
        changed = changes(theirs, ours, json.loads(json.dumps(self.component.defaults)))
        not_accepted = refused(changed, self.settings.accept_changes)
        for name in changed.keys() - not_accepted.keys():
            self._report(f"accepted: {changed[name]}")
        return not_accepted
