"""A run of a pipeline into a folder: its identity, its plan, its work, and the files that come from its shards."""

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.cost import with_pipeline
from videolavit.records.files import InputError
from videolavit.records.identity import IdentityMismatch, check_identity
from videolavit.records.kinds import Kind, PlanSettings
from videolavit.records.listing import Listing, rebatched
from videolavit.records.rejects import RejectFacts, write_rejects
from videolavit.records.report import REPORT
from videolavit.records.shards import RUN_FILE, Ledger, ShardKind
from videolavit.records.storage import Folder, StorageSettings, naming_location
from videolavit.records.totals import RunTotals
from videolavit.records.traffic import S3_TRAFFIC
from videolavit.sandbox.call import describe_layers
from videolavit.scratch import scratch_folder

from .common import WorkerSettings
from .estimate import Calibration, calibrate, shard_costs
from .faults import STOP_AFTER, StorageStopped, wait_for_storage
from .feeding import WaitingShards, waiting_shards
from .live import LIVE_FILE
from .making import ShardMaking
from .planning import SOURCES_PER_PLAN, Planner, pending_rows
from .session import ray_session

REJECTS_FILE = "rejects.parquet"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of one start of a run.

    Args:
        retry_rejects: Try the rejects of the run again.
        only: Error type to retry; None for all.
        accept_changes: Libraries whose version may differ from the run's, such as `pillow`.
    """

    retry_rejects: bool = False
    only: str | None = None
    accept_changes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.only and not self.retry_rejects:
            raise ValueError("only goes with retry_rejects")


class RunIncomplete(RuntimeError):
    """Shards of a run failed. Another start tries them again."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run after a start.

    Args:
        folder: Address of the run.
        planned: Samples of all plans.
        samples: Samples in shards.
        rejects: Samples that could not be made.
        rejects_by_type: Number of rejects by error type, the most frequent first.
        shards: Committed shards.
        shards_left: Planned shards that are not committed.
        video_hours: Hours of video in the shards.
        core_hours: Core-hours that decomposing them took.
        planned_core_hours: Core-hours that the plan said of the committed shards; 0 where it says nothing of that.
        counts: Further counts, such as clips and frames.
        seconds: Duration of this start, in seconds.
        s3: Requests to S3 by operation, and bytes, of the driver and of workers in all starts.
        joined_rows: Rows of manifests that gave a video a further caption.
        ignored_captions: Captions that were not applied, since an earlier input named their video or it is planned
            already.
        left_out: Columns of manifests that do not travel, and why, in words.
        accepted_changes: Versions that differ from those of the run's start and were accepted.
        report: Address of the dataset card.
        stopped: Reason why the run stopped before its time: a storage, or workers of which nothing is heard; empty if
            it did not.
    """

    folder: str
    planned: int
    samples: int
    rejects: int
    rejects_by_type: Mapping[str, int]
    shards: int
    shards_left: int
    video_hours: float
    core_hours: float
    counts: Mapping[str, int]
    seconds: float
    s3: Mapping[str, int] = field(default_factory=dict)
    planned_core_hours: float = 0.0
    joined_rows: int = 0
    ignored_captions: int = 0
    left_out: Sequence[str] = ()
    accepted_changes: Sequence[str] = ()
    report: str = ""
    stopped: str = ""

    @property
    def is_complete(self) -> bool:
        """True if no shard is left."""
        return not self.shards_left

    def check_complete(self) -> None:
        """Raises RunIncomplete if a shard is left."""
        if self.shards_left:
            raise RunIncomplete(f"{self.shards_left} shards of {self.folder} are left; the same call continues")


@dataclass(frozen=True)
class Work:
    """Work of one group of a plan.

    Args:
        sources: Number of sources.
        samples: Number of samples.
        core_hours: Estimated core-hours, without the tokenizers and with the share of the pipeline around the work.
        spread: Factor by which a run may take more or less.
        figures: Further figures, by name.
        unread: Sources without a readable header.
    """

    sources: int = 0
    samples: int = 0
    core_hours: float = 0.0
    spread: float = 1.0
    figures: Mapping[str, float] = field(default_factory=dict)
    unread: int = 0


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """Work of a run that has not started.

    Args:
        new: Sources that no plan of the run has.
        waiting: Samples that are planned and not done.
        calibrated_on: Committed shards that the costs were calibrated on; 0 for those of the model.
        encoder_hours: Hours of a GPU, or of a core, that the tokenizers need; 0 where they were not timed.
        encoder_device: Device that they were timed on: `cuda`, `cpu` or empty.
        joined_rows: Rows of manifests that gave a video a further caption.
        ignored_captions: Captions that are not applied, since an earlier input named their video or it is planned
            already.
        left_out: Columns of manifests that do not travel, and why, in words.
    """

    new: Work
    waiting: Work
    calibrated_on: int = 0
    encoder_hours: float = 0.0
    encoder_device: str = ""
    joined_rows: int = 0
    ignored_captions: int = 0
    left_out: Sequence[str] = ()


class Pipeline(ABC):
    """Parts in which pipelines differ.

    Args:
        settings: Settings that decide what is planned.
        workers: Settings of workers.
    """

    name: ClassVar[str]
    shards: ClassVar[ShardKind]
    reserved: ClassVar[frozenset[str]]

    def __init__(self, settings: PlanSettings, workers: WorkerSettings) -> None:
        self.settings, self.workers = settings, workers

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns all that the bytes of the shards depend on, by stored names. A folder with another one is refused."""

    @abstractmethod
    def takes(self, kind: Kind) -> bool:
        """True for the kinds of input that the pipeline reads."""

    @abstractmethod
    def assign(self, rows: pa.Table, generation: int) -> pa.Table:
        """Rows of a plan with the names of their shards."""

    @abstractmethod
    def figures(self, rows: pa.Table) -> dict[str, float]:
        """Figures of rows of a plan, by name."""

    @abstractmethod
    def work(self, shards: WaitingShards, folder: Folder) -> "ray.data.Dataset":
        """Dataset that makes shards; its rows are records of their progress."""

    @abstractmethod
    def describe(self, counts: Mapping[str, float], seconds: float) -> str:
        """Line for people about the counts so far."""

    @abstractmethod
    def counts(self, totals: Counter[str]) -> dict[str, int]:
        """Further counts of the run, from the footers of its shards."""

    @abstractmethod
    def write_report(self, folder: Folder, run: dict[str, Any], rejects: Sequence[RejectFacts]) -> None:
        """Writes the dataset card."""

    def write_index(self, folder: Folder) -> int:
        """Writes what a training looks up instead of opening every shard; returns the number of shards that are new."""
        return 0


def open_run(
    pipeline: Pipeline, output: str, storage: StorageSettings, settings: RunSettings
) -> tuple[Ledger, list[str]]:
    """The ledger of a run that is there or can be started, and the changes of versions that were accepted.

    Raises:
        IdentityMismatch: another run made the folder.
        InputError: there are no rejects to retry, since there is no run.
        StorageError: the location cannot be used.
    """
    ledger = Ledger(Folder(output, storage), pipeline.shards)
    found = ledger.folder.read(RUN_FILE)
    if found is None:
        if settings.retry_rejects:
            raise InputError(f"{ledger.folder.url} holds no run whose rejects could be tried again")
        return ledger, []
    try:
        theirs = dict(json.loads(found)["identity"])
    except (ValueError, KeyError, TypeError):
        raise IdentityMismatch(
            f"{ledger.folder.join(RUN_FILE)} is not of this project; choose another output"
        ) from None
    kind = theirs.get("kind", "clips")
    if kind != pipeline.shards.folder:
        raise IdentityMismatch(f"{ledger.folder.url} is a run of {kind}; choose another output for {pipeline.name}")
    ours = json.loads(_json(pipeline.identity()))
    return ledger, check_identity(theirs, ours, settings.accept_changes, ledger.folder.url)


def start_run(
    pipeline: Pipeline,
    listing: Listing | None,
    output: str,
    storage: StorageSettings,
    settings: RunSettings,
    on_progress: OnProgress = ignore_progress,
) -> RunSummary:
    """Plans what is new, makes the shards that are left, and writes what is derived from them.

    Args:
        listing: Inputs; None to continue without any.

    Raises:
        InputError, StorageError, IdentityMismatch: mistakes in the request, before any work.
        PlanningConflict, PlanningIncomplete: starting again continues.
    """
    started = time.monotonic()
    ledger, accepted = open_run(pipeline, output, storage, settings)
    S3_TRAFFIC.add(_earlier_traffic(ledger.folder))
    identity = pipeline.identity()
    ledger.folder.claim(RUN_FILE, _json({"identity": identity, "complete": False}))
    open_run(pipeline, output, storage, settings)  # another run may have claimed the folder
    if accepted:
        found = json.loads(ledger.folder.read(RUN_FILE) or b"{}")
        with naming_location(ledger.folder.url):
            ledger.folder.replace(RUN_FILE, _json(found | {"identity": identity, "complete": False}))
    on_progress(Progress("sandbox", message=describe_layers()))
    with ray_session(on_progress):
        planner = Planner(ledger, pipeline.assign, pipeline.settings, pipeline.workers, storage, on_progress)
        with planner:
            if settings.retry_rejects:
                planner.commit_retries(settings.only)
            if listing is not None:
                _name_links(listing, on_progress)
                planner.commit(listing)
        stopped = _work_on_pending(pipeline, ledger, storage, on_progress)
        pipeline.write_index(ledger.folder)
    planned_core_hours = _planned_core_hours(ledger) if pipeline.settings.makes_clips else 0.0
    summary = finish_run(pipeline, ledger, identity, time.monotonic() - started)
    return dataclasses.replace(
        summary,
        joined_rows=listing.joined_rows if listing is not None else 0,
        ignored_captions=planner.ignored_captions,
        left_out=listing.left_out if listing is not None else (),
        accepted_changes=accepted,
        stopped=stopped,
        planned_core_hours=planned_core_hours,
    )


def plan_run(
    pipeline: Pipeline,
    listing: Listing,
    output: str | None,
    storage: StorageSettings,
    settings: RunSettings,
    on_progress: OnProgress = ignore_progress,
) -> PlanSummary:
    """Computes the work of `start_run` and its cost, and writes nothing."""
    ledger = open_run(pipeline, output, storage, settings)[0] if output else None
    calibration = calibrate(ledger) if ledger else Calibration()
    with ray_session(on_progress):
        planner = Planner(ledger, pipeline.assign, pipeline.settings, pipeline.workers, storage, on_progress)
        _name_links(listing, on_progress)
        with planner:
            new = new_work(pipeline, planner, listing)
    waiting = waiting_work(pipeline, ledger) if ledger else Work()
    return PlanSummary(
        new=_calibrated(new, calibration),
        waiting=_calibrated(waiting, calibration),
        calibrated_on=calibration.shards,
        joined_rows=listing.joined_rows,
        ignored_captions=planner.ignored_captions,
        left_out=listing.left_out,
    )


def new_work(pipeline: Pipeline, planner: Planner, listing: Listing) -> Work:
    """Work of the sources that no plan has."""
    new = Work()
    for batch in rebatched(iter(listing), SOURCES_PER_PLAN):
        sources = planner.new(batch)
        if sources.num_rows:
            new = _added(new, _measured(pipeline, planner.read(sources)))
    return new


def waiting_work(pipeline: Pipeline, ledger: Ledger) -> Work:
    """Work that is planned and not done."""
    waiting = Work()
    for rows in pending_rows(ledger):
        waiting = _added(waiting, _measured(pipeline, rows))
    return waiting


def list_inputs(pipeline: Pipeline, inputs: Sequence[str], storage: StorageSettings) -> Listing:
    """Listing of the inputs of a pipeline."""
    return Listing(inputs, pipeline.settings.inputs, storage, pipeline.takes, pipeline.reserved, pipeline.name)


def _name_links(listing: Listing, on_progress: OnProgress) -> None:
    """Names files of others that come along: a folder of a stranger may have links to private ones."""
    for line in listing.linked:
        on_progress(Progress("links", message=line))


def _measured(pipeline: Pipeline, rows: pa.Table) -> Work:
    return Work(
        sources=pc.count_distinct(rows["source"]).as_py(),
        samples=rows.num_rows,
        core_hours=(pc.sum(rows["cost"]).as_py() or 0.0) / 3600,
        figures=pipeline.figures(rows),
        unread=rows["planned_seconds"].null_count,
    )


def _calibrated(work: Work, calibration: Calibration) -> Work:
    """Work whose core-hours are those that are expected, from those of the plan."""
    core_seconds = 3600 * work.core_hours * calibration.factor
    core_hours = with_pipeline(core_seconds, work.samples) / 3600
    return dataclasses.replace(work, core_hours=core_hours, spread=calibration.spread)


def _added(one: Work, other: Work) -> Work:
    names = [*one.figures, *(name for name in other.figures if name not in one.figures)]
    return Work(
        sources=one.sources + other.sources,
        samples=one.samples + other.samples,
        core_hours=one.core_hours + other.core_hours,
        figures={name: one.figures.get(name, 0) + other.figures.get(name, 0) for name in names},
        unread=one.unread + other.unread,
    )


def _work_on_pending(pipeline: Pipeline, ledger: Ledger, storage: StorageSettings, on_progress: OnProgress) -> str:
    """Makes the shards that are left; waits for a storage that fails, and goes on when it gives its files again.

    Returns:
        Reason why the work stopped; empty if it did not.
    """
    ledger.forget_incomplete()
    shards = waiting_shards(ledger)
    if not shards.count:
        on_progress(Progress(pipeline.name, message="nothing new to do"))
    in_vain = 0
    while shards.count:
        dataset = pipeline.work(shards, ledger.folder)
        making = ShardMaking(pipeline.name, pipeline.describe, dataset, shards.samples, ledger.folder, on_progress)
        halt = making.run()
        if halt is None or halt.is_final:
            return halt.reason if halt else ""
        try:
            if halt.storage is not None:
                wait_for_storage(halt.storage, storage, on_progress)
        except StorageStopped as error:
            return str(error)
        left = waiting_shards(ledger)
        in_vain = in_vain + 1 if left.count == shards.count else 0
        if in_vain == STOP_AFTER:
            if halt.storage is not None:
                return f"workers cannot read what this process can: {halt.reason}"
            return f"{halt.reason}, {STOP_AFTER} times in a row: look at those nodes and their network"
        if halt.storage is None and left.count:
            on_progress(Progress("silent shards", message=f"{halt.reason}; other workers make what is left"))
        shards = left
    return ""


def finish_run(pipeline: Pipeline, ledger: Ledger, identity: dict[str, Any], seconds: float) -> RunSummary:
    """Writes the files that are derived from the shards."""
    ledger.compact()
    left = sum(len(shards) for _, shards in ledger.pending())
    totals, folder = RunTotals(ledger.standing()), ledger.folder
    with scratch_folder() as scratch, naming_location(folder.url):
        file = scratch / REJECTS_FILE
        write_rejects(file, totals.add(ledger.summaries()))
        folder.replace_with(REJECTS_FILE, file)
    sums, rejects = totals.counts, totals.rejects.facts
    counts: dict[str, Any] = {
        "planned": totals.standing.planned,
        "samples": sums["samples"],
        **pipeline.counts(sums),
        "rejects": sum(one.count for one in rejects),
        "rejects_by_type": {one.error_type: one.count for one in rejects},
        "shards": totals.shards,
        "shards_left": left,
        "video_hours": sums["video_seconds"] / 3600,
        "core_hours": sums["work_seconds"] / 3600,
    }
    if not left and counts["samples"] + counts["rejects"] != counts["planned"]:
        raise AssertionError(f"{counts['planned']} samples were planned, the shards account for others: {counts}")
    run = {"identity": identity, "complete": not left, "counts": counts, "last_start_seconds": seconds}
    pipeline.write_report(folder, run, rejects)
    with naming_location(folder.url):
        folder.replace(RUN_FILE, _json(run | {"s3": S3_TRAFFIC.counts}))
    own = {one.name for one in dataclasses.fields(RunSummary)}
    return RunSummary(
        folder=folder.url,
        **{name: value for name, value in counts.items() if name in own},
        counts={name: value for name, value in counts.items() if name not in own},
        s3=S3_TRAFFIC.counts,
        seconds=seconds,
        report=folder.join(REPORT) if folder.is_local else f"{folder.url}/{REPORT}",
    )


def _earlier_traffic(folder: Folder) -> Counter[str]:
    """Requests of the starts before. Both files have the sums of their time; a start that was killed left one alone."""
    found: Counter[str] = Counter()
    for name in (RUN_FILE, LIVE_FILE):
        found |= Counter(json.loads(folder.read(name) or b"{}").get("s3", {}))
    return found


def _planned_core_hours(ledger: Ledger) -> float:
    """Core-hours that the plan said of the committed shards."""
    done = ledger.committed()
    return sum(cost for shard, cost in shard_costs(ledger) if shard in done) / 3600


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
