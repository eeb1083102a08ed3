"""Two runs that plan at the same time: whatever the order of their steps, no source is planned twice."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import planning
from pipelines.common import WorkerSettings
from pipelines.decompose import DecomposeRequest, Decomposition
from pipelines.headers import HeaderReader
from pipelines.planning import Planner, PlanningConflict
from tests.records.kinds.reading import SETTINGS
from tests.records.listed import STORAGE, sources, videos
from tests.sandbox import hostile
from videolavit.progress import ignore_progress
from videolavit.records.files import InputError
from videolavit.records.kinds import KINDS
from videolavit.records.listing import Listing
from videolavit.records.rows import PlanRow, Reject, Source, extra_fields, plan_rows_to, sources_from, sources_to
from videolavit.records.shards import Ledger, ShardWriter
from videolavit.records.source_files import isolated
from videolavit.records.standing import Standing
from videolavit.records.storage import Folder, StorageSettings


class WithoutRay(Planner):
    """Plans every source as one segment, without looking at it."""

    meanwhile: Callable[[], None] | None = None
    """Called while the headers would be read."""

    def read(self, sources: pa.Table) -> pa.Table:
        if self.meanwhile is not None:
            self.meanwhile()
        rows = [KINDS[source.kind].plan_unread(source, self.settings) for source in sources_from(sources)]
        return plan_rows_to(rows, extra_fields(sources.schema))


def _planner(folder: Path) -> WithoutRay:
    pipeline = Decomposition.of(DecomposeRequest())
    ledger = Ledger(Folder(str(folder), STORAGE))
    return WithoutRay(ledger, pipeline.assign, pipeline.settings, WorkerSettings(), STORAGE, ignore_progress)


def _listing(tmp_path: Path, *names: str) -> Listing:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    return videos([tmp_path / name for name in names])


def _planned(planner: Planner) -> list[str]:
    assert planner.ledger is not None
    return [url.rsplit("/", 1)[1] for plan in planner.ledger.planned() for url in plan["url"].to_pylist()]


def test_of_two_plans_the_first_wins(tmp_path: Path) -> None:
    listing = _listing(tmp_path, "a.mp4", "b.mp4")
    first, second = _planner(tmp_path / "out"), _planner(tmp_path / "out")
    second.meanwhile = lambda: first.commit(listing)  # both see an empty run
    with pytest.raises(PlanningConflict, match="start again to join it"):
        second.commit(listing)
    assert sorted(_planned(first)) == ["a.mp4", "b.mp4"]
    _planner(tmp_path / "out").commit(_listing(tmp_path, "a.mp4", "b.mp4", "c.mp4"))
    assert sorted(_planned(first)) == ["a.mp4", "b.mp4", "c.mp4"]


def test_of_two_retries_the_first_wins(tmp_path: Path) -> None:
    planner = _planner(tmp_path / "out")
    planner.commit(_listing(tmp_path, "a.mp4"))
    _reject_all(planner)
    first, second = _planner(tmp_path / "out"), _planner(tmp_path / "out")
    second.meanwhile = lambda: first.commit_retries(None)
    with pytest.raises(PlanningConflict):
        second.commit_retries(None)
    assert _planned(first) == ["a.mp4", "a.mp4"]
    second.meanwhile = None
    second.commit_retries(None)  # the reject is no longer a standing one
    assert _planned(first) == ["a.mp4", "a.mp4"]


def test_a_retry_that_another_run_plans_after_the_rejects_were_read_is_noticed(tmp_path: Path) -> None:
    planner = _planner(tmp_path / "out")
    planner.commit(_listing(tmp_path, "a.mp4"))
    _reject_all(planner)
    first, second = _planner(tmp_path / "out"), _planner(tmp_path / "out")

    class SlowLedger(Ledger):
        def standing(self) -> Standing:
            found = super().standing()
            first.commit_retries(None)
            return found

    second.ledger = SlowLedger(Folder(str(tmp_path / "out"), STORAGE))
    with pytest.raises(PlanningConflict):
        second.commit_retries(None)
    assert _planned(first) == ["a.mp4", "a.mp4"]


def test_many_rejects_are_retried_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = _planner(tmp_path / "out")
    for name in ("a.mp4", "b.mp4", "c.mp4"):  # a plan each
        planner.commit(_listing(tmp_path, name))
    _reject_all(planner)
    monkeypatch.setattr(planning, "SOURCES_PER_PLAN", 2)
    again = _planner(tmp_path / "out")
    again.commit_retries(None)
    assert again.ledger is not None
    plans = list(again.ledger.planned())[3:]
    assert [sorted(url.rsplit("/", 1)[1] for url in plan["url"].to_pylist()) for plan in plans] == [
        ["a.mp4", "b.mp4"],
        ["c.mp4"],
    ]
    assert [plan["attempts"].to_pylist() for plan in plans] == [[1, 1], [1]]
    assert again.ledger.standing().planned == 3


def test_columns_keep_their_types_through_a_run(tmp_path: Path) -> None:
    for name, value in (("one", "1"), ("two", '"x"')):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"video": "{name}.mp4", "id": {value}}}\n')
    planner = _planner(tmp_path / "out")
    planner.commit(videos([tmp_path / "one.jsonl"]))
    with pytest.raises(InputError, match="column `id` is int64 in this run, string in the new manifest"):
        planner.new(sources(videos([tmp_path / "two.jsonl"])))


def test_columns_of_another_type_take_that_of_the_run(tmp_path: Path) -> None:
    """Runs of earlier versions, for example, have points in time where now there is text."""
    day = datetime(2020, 1, 1)
    kinds = {"seen": pa.timestamp("ms"), "score": pa.float64(), "tags": pa.large_list(pa.string())}
    planner = _planner(tmp_path / "out")
    assert planner.ledger is not None
    row = PlanRow(sample_id="a", source="a", url="a", kind="video", extra={"seen": day, "score": 0.5, "tags": ["x"]})
    fields = [pa.field(name, kind) for name, kind in kinds.items()]
    planner.ledger.add_plan(0, planner.assign(plan_rows_to([row], fields), 0))
    line = {"video": "b.mp4", "seen": "2020-01-01 00:00:00", "score": 1, "tags": ["x"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    planner.commit(videos([tmp_path / "m.jsonl"]))
    _, plan = planner.ledger.planned()
    assert plan.select([f"extra.{name}" for name in kinds]).to_pylist() == [
        {"extra.seen": day, "extra.score": 1.0, "extra.tags": ["x"]}
    ]
    assert extra_fields(plan.schema) == fields


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("jsonl", '{"video": "a.mp4", "day": "2020-01-01", "meta": {}, "at": [null]}\n'),
        ("csv", "video,day,at\na.mp4,2020-01-01,2020-01-01 10:00:00\n"),
    ],
)
def test_a_manifest_in_text_resumes(tmp_path: Path, suffix: str, text: str) -> None:
    (tmp_path / f"m.{suffix}").write_text(text)
    for _ in range(2):
        planner = _planner(tmp_path / "out")
        planner.commit(videos([tmp_path / f"m.{suffix}"]))
        assert _planned(planner) == ["a.mp4"]


def test_videos_that_share_a_range_id_are_videos_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("".join(f'{{"video": "{name}.mp4", "range_id": "r"}}\n' for name in "ab"))
    planner = _planner(tmp_path / "out")
    planner.commit(videos([tmp_path / "m.jsonl"]))
    assert sorted(_planned(planner)) == ["a.mp4", "b.mp4"]
    assert planner.new(sources(videos([tmp_path / "m.jsonl"]))).num_rows == 0


def test_a_shard_of_ranges_is_planned_once(tmp_path: Path) -> None:
    """The rows of a clip shard keep the range ids of the run that made it."""
    planner, shard = _planner(tmp_path / "out"), str(tmp_path / "clips" / "0.parquet")
    rows = [
        PlanRow(sample_id=str(index), source="a.mp4", url=shard, kind="clips", row=index, extra={"range_id": "r"})
        for index in range(2)
    ]
    assert planner.ledger is not None
    planner.ledger.add_plan(0, planner.assign(plan_rows_to(rows, [pa.field("range_id", pa.string())]), 0))
    listed = sources_to([Source(source=shard, url=shard, kind="clips")])
    assert planner.new(listed).num_rows == 0


def test_captions_of_later_inputs_are_counted(tmp_path: Path) -> None:
    for name, caption in (("first", "one"), ("second", "two")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"video": "a.mp4", "text": "{caption}"}}\n')
    inputs = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    planner = _planner(tmp_path / "out")
    planner.commit(videos(inputs))
    assert (planner.ignored_captions, len(_planned(planner))) == (1, 1)
    _reject_all(planner)
    planner.commit_retries(None)
    again = _planner(tmp_path / "out")
    again.commit(videos(inputs[1:]))  # two plans have the video: the caption is counted once
    assert (again.ignored_captions, len(_planned(again))) == (1, 2)


def test_one_range_with_two_captions_is_reported(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video,start,end,text\na.mp4,1,2,one\na.mp4,1,2,two\na.mp4,1,3,three\n")
    planner = _planner(tmp_path / "out")
    planner.commit(videos([tmp_path / "m.csv"]))
    assert (planner.ignored_captions, len(_planned(planner))) == (1, 2)


def _reject_all(planner: Planner) -> None:
    assert planner.ledger is not None
    for plan in planner.ledger.planned():
        for row in plan.to_pylist():
            with ShardWriter(planner.ledger.folder, row["shard"], []) as writer:
                writer.reject(
                    Reject(
                        sample_id=row["sample_id"],
                        source=row["source"],
                        start_seconds=row["start_seconds"],
                        stage="decompose",
                        error_type="CorruptVideo",
                        message="cut",
                        attempts=1,
                        seconds=0.5,
                    )
                )
                writer.commit()


@pytest.mark.parametrize("name", ["stray_sources", "stray_captions", "stray_kinds", "stray_plan", "no_plan"])
def test_a_child_that_was_broken_into_has_no_file_of_others_opened(tmp_path: Path, name: str) -> None:
    """Files that it plans would be opened by its parent, and read by the next child."""
    storage, file = StorageSettings(), tmp_path / "set.tar"
    file.write_bytes(b"")
    reader = HeaderReader(SETTINGS, storage, WorkerSettings(attempts=1))
    place = "_plan" if "plan" in name else "_expand"
    setattr(reader, place, isolated(getattr(hostile, name), storage))
    source = Source(source=str(file), url=str(file), kind="video" if place == "_plan" else "tar")
    (row,) = reader.read(sources_to([source]), []).to_pylist()
    assert (row["url"], row["text_url"], row["kind"]) == (source.url, None, source.kind)
