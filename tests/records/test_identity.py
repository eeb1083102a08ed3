"""Names that must not move: sample ids and identities of runs that are on people's disks."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from videolavit.records.identity import (
    IdentityMismatch,
    check_identity,
    identifying_settings,
    made_by,
    range_id,
    run_identity,
    sample_id,
)
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import KINDS, PlanSettings
from videolavit.records.rows import Source, keys, plan_rows_from
from videolavit.records.samples import SampleSettings

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-0.1"
DEFAULT = SampleSettings()


def test_ids_of_samples_stay() -> None:
    """Written down from version 0.1."""
    assert sample_id("s3://bucket/a.mp4", 0.0, identifying_settings(DEFAULT)) == "6e4299970bc1f4fb9fa5619392a26533"
    assert sample_id("s3://bucket/a.mp4", 120.0, identifying_settings(DEFAULT)) == "69004c3e53158a3161869690608033e9"
    png = SampleSettings(keyframe_format="png", segment_seconds=60, policy="eval")
    assert sample_id("/data/a.mp4", 0.0, identifying_settings(png)) == "97e7506701810e2b7d9370ecb2837102"
    settings = PlanSettings(sample=DEFAULT, inputs=InputSettings())
    for kind, name in (
        ("image", "e3daaf633fe15f476b92226b7e436eec"),
        ("text", "175c43b5d86067fce9c45e216afb9f87"),
        ("video", "6e4299970bc1f4fb9fa5619392a26533"),
    ):
        source = Source(source="s3://bucket/a.mp4", url="s3://bucket/a.mp4", kind=kind)
        assert KINDS[kind].plan_unread(source, settings).sample_id == name


def test_ids_of_ranges_stay() -> None:
    assert range_id("s3://bucket/a.mp4", 1.5, 4.0) == "3d6df65fdab4675e0a45530cdf5931ea"
    assert sample_id("s3://bucket/a.mp4", 1.5, identifying_settings(DEFAULT), 4.0) == "5568d468b008d116c7c04b137fd63290"


def test_a_new_setting_with_its_default_renames_nothing() -> None:
    """A field that the explicit lists do not know changes neither ids nor identities."""
    later = dataclasses.make_dataclass(
        "Later",
        [("denoise", bool, dataclasses.field(default=False))],
        bases=(SampleSettings,),
        frozen=True,
        kw_only=True,
    )
    assert identifying_settings(later()) == identifying_settings(DEFAULT)
    assert run_identity(later()) == run_identity(DEFAULT)


def test_every_setting_of_today_is_in_the_list() -> None:
    """Two runs that differ in a setting never share an id."""
    assert {field.name for field in dataclasses.fields(SampleSettings)} == set(identifying_settings(DEFAULT))


def test_the_identity_of_a_run_is_that_of_version_0_1() -> None:
    stored = json.loads((OLD_RUN / "clips-run" / "run.json").read_text())["identity"]
    ours = run_identity(SampleSettings(segment_seconds=8.0))
    assert ours["settings"] == stored["settings"]
    assert ours.keys() == stored.keys()
    assert ours["codecs"].keys() == stored["codecs"].keys()


def test_plans_of_version_0_1_are_read() -> None:
    plans = [pq.read_table(file) for file in sorted((OLD_RUN / "clips-run" / "plan").iterdir())]
    assert all(keys(plan) == plan["source"] for plan in plans)
    rows = [row for plan in plans for row in plan_rows_from(plan)]
    assert [row.kind for row in rows] == ["video"] * len(rows)
    assert {row.extra["score"] for row in rows if "score" in row.extra} == {0.5, 0.25, None}
    member = next(row for row in rows if row.offset is not None)
    assert (member.text, json.loads(member.extra["tar_json"])) == ("a member", {"id": 1})


THEIRS = {"settings": {"fps": 6}, "pillow": "12.0", "codecs": {"libavcodec": "61"}, "architecture": "x86_64"}


def test_changes_of_versions_are_accepted_by_name() -> None:
    ours = THEIRS | {"pillow": "13.0"}
    with pytest.raises(IdentityMismatch, match=r"changes of pillow \(accept_changes\)[\s\S]*pillow: 12.0 -> 13.0"):
        check_identity(THEIRS, ours, (), "RUN")
    assert check_identity(THEIRS, ours, ("pillow",), "RUN") == ["pillow: 12.0 -> 13.0"]
    assert check_identity(THEIRS, THEIRS, ("pillow",), "RUN") == []
    both = ours | {"codecs": {"libavcodec": "62"}}
    with pytest.raises(IdentityMismatch, match=r"codecs.libavcodec: 61 -> 62"):
        check_identity(THEIRS, both, ("pillow",), "RUN")
    assert len(check_identity(THEIRS, both, ("pillow", "codecs"), "RUN")) == 2


@pytest.mark.parametrize("change", [{"settings": {"fps": 8}}, {"architecture": "aarch64"}, {"device": "cuda"}])
def test_other_changes_cannot_be_accepted(change: dict[str, object]) -> None:
    with pytest.raises(IdentityMismatch, match="undo what differs") as caught:
        check_identity(THEIRS, THEIRS | change, ("pillow",), "RUN")
    assert "accept_changes" not in str(caught.value)
    with pytest.raises(IdentityMismatch, match="cannot be accepted"):
        check_identity(THEIRS, THEIRS | change, tuple(change), "RUN")


def test_shards_record_what_made_them() -> None:
    (value,) = made_by({"torch": "9"}).values()
    assert json.loads(value).keys() == {"videolavit", "codecs", "av", "pillow", "torch", "architecture"}
