"""The loop on a toy: the same run however it is cut up, and what happens when something goes wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.disks import disk
from tests.training.toys import BrokenSource, ToyObjective, toy
from videolavit.models.objective import Draws
from videolavit.training.checkpoint import CHECKPOINT_MANIFEST, CheckpointError
from videolavit.training.component import Component
from videolavit.training.data import DataError, Item, Mixture, SampleStream
from videolavit.training.parallel import Ranks
from videolavit.training.rejects import TooManyRejects
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainSettings
from videolavit.training.trainer import Diverged, Stopped, Trainer

QUICK: dict[str, Any] = {
    "steps": 20,
    "batch": 12,
    "micro_batch": 12,
    "seed": 5,
    "log_every": 1,
    "save_every": 5,
    "trackers": (),
    "optimizer": OptimizerSettings(lr=0.01, warmup=3, ema=0.9),
}
EXACT = {"rtol": 0, "atol": 0}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**(QUICK | changes))


def run(folder: Path, component: Component | None = None, stop: int | None = None, **changes: Any) -> Trainer:
    """Trains; with `stop`, the process dies there as far as the folder can tell."""
    lines: list[str] = []
    trainer = Trainer(
        component or toy(),
        settings(**changes),
        Ranks(),
        folder,
        on_progress=lambda progress: lines.append(progress.message),
    )
    trainer.lines = lines  # type: ignore[attr-defined]
    if stop is None:
        trainer.run()
    else:
        _run_until(trainer, stop)
    return trainer


class Killed(Exception):
    pass


def _run_until(trainer: Trainer, stop: int) -> None:
    train = trainer._train

    def dying(*args: Any) -> float:
        if trainer.step == stop:
            raise Killed
        return train(*args)

    trainer._train = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()
    trainer._checkpoints._writer.shutdown()  # a process that died writes no more


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(one["step"], one["error"], one["grad_norm"]) for one in metrics(folder) if "error" in one]


def same(one: Trainer, other: Trainer, **tolerance: float) -> None:
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], **(tolerance or EXACT), msg=lambda text, name=name: f"{name}: {text}"
        )


def test_it_learns_and_writes_what_happened(tmp_path: Path) -> None:
    run(tmp_path, steps=60, validate_every=20)
    found = metrics(tmp_path)
    steps = [one for one in found if "error" in one]
    assert steps[-1]["error"] < steps[0]["error"] / 2
    assert steps[0]["lr"] == pytest.approx(0.01 / 3)
    assert steps[2]["lr"] == pytest.approx(0.01)
    assert steps[-1]["lr"] == pytest.approx(0, abs=1e-9)
    assert [one["step"] for one in found if "validation/loss" in one] == [20, 40, 60]
    assert steps[-1]["tokens/many"] == 3 * steps[-1]["tokens/few"] == 540
    assert steps[-1]["seen"] != 0


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", micro_batch=5)
    same(whole, parts, rtol=1e-4, atol=1e-6)
    assert [one[0] for one in losses(tmp_path / "parts")] == list(range(1, 21))


@pytest.mark.parametrize("stop", [3, 5, 12])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=stop)
    second = run(tmp_path / "cut")
    same(whole, second)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    cut, undisturbed = ([one for one in metrics(tmp_path / name) if "error" in one][-1] for name in ("cut", "whole"))
    assert cut["tokens/many"] == undisturbed["tokens/many"]


def test_a_broken_checkpoint_is_skipped_and_named(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=16, keep=3)
    older, newest = sorted(path.parent for path in (tmp_path / "cut" / "checkpoints").glob(f"*/{CHECKPOINT_MANIFEST}"))[
        -2:
    ]
    file = next(newest.glob("shard-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    second = run(tmp_path / "cut", keep=3)
    assert any(f"skipped the checkpoint {newest.name}" in line and file.name in line for line in second.lines)
    assert any(f"continues from {older.name}" in line for line in second.lines)
    same(whole, second)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    (tmp_path / "checkpoints" / "step-00000005" / CHECKPOINT_MANIFEST).unlink()
    second = run(tmp_path, steps=6)
    assert not any("continues" in line for line in second.lines)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, save_every=4, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000016", "step-00000020"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    with pytest.raises(CheckpointError, match=r"seed: 5 -> 6"):
        run(tmp_path, seed=6)
    component = toy()
    component.objective.head = torch.nn.Linear(4, 4, bias=False)  # type: ignore[assignment]
    run(tmp_path / "other", steps=5)
    component.objective.add_module("more", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="another model"):
        run(tmp_path / "other", component)


def test_samples_that_cannot_be_read_are_left_out_and_recorded(tmp_path: Path) -> None:
    broken = frozenset({1, 2, 30})
    trainer = run(tmp_path, toy(broken=broken), batch=8, micro_batch=1)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert {one["message"] for one in rejects} == {f"sample {row} is broken" for row in broken}
    assert {one["error_type"] for one in rejects} == {"Unreadable"}
    # micro batches of one make stand-ins; larger ones are only smaller by the sample: the same steps
    same(trainer, run(tmp_path / "larger", toy(broken=broken), batch=8, micro_batch=8), rtol=1e-4, atol=1e-6)


def test_a_run_begins_and_goes_on_where_samples_are_broken(tmp_path: Path) -> None:
    """A step without a usable sample changes nothing, and has no loss."""
    broken = frozenset(range(37))  # all of one source
    assert [item.source for item in toy().stream.take(2)] == ["many", "many"]
    whole = run(tmp_path / "whole", toy(broken=broken), batch=1, micro_batch=1, save_every=1)
    folder = tmp_path / "parts"
    for stop in (1, 2, 3):
        run(folder, toy(broken=broken), stop=stop, batch=1, micro_batch=1, save_every=1)
    same(whole, run(folder, toy(broken=broken), batch=1, micro_batch=1, save_every=1))
    found = metrics(folder)
    rejects = [json.loads(line)["step"] for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert {one["step"] for one in found if "loss" in one} == {*range(1, 21)} - {*rejects}
    assert {one["step"] for one in found if "samples_per_second" in one} == {*range(1, 21)}
    assert float(whole.tensors()["optimizer.head.weight.step"]) == 20 - len(set(rejects))


def test_a_source_without_a_usable_sample_is_an_error(tmp_path: Path) -> None:
    component = toy(broken=frozenset(range(37)))
    only = SampleStream(Mixture([BrokenSource("many", [None] * 5, set(range(5)))], seed=3))
    with pytest.raises(DataError, match=r"none of 256 samples can be used; the last, of many: sample \d is broken"):
        run(tmp_path, replace(component, stream=only), batch=1, micro_batch=1)


def test_what_was_trained_is_saved_before_it_is_shown(tmp_path: Path) -> None:
    def fails(*_: Any) -> dict[str, float]:
        raise RuntimeError("no picture")

    with pytest.raises(RuntimeError, match="no picture"):
        run(tmp_path, toy(write_samples=fails), save_every=1000)
    assert any("continues from step-00000020" in line for line in run(tmp_path, save_every=1000).lines)


class Exploding(ToyObjective):
    """Objective whose loss is not finite in some steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self._steps, self._step = steps, 0

    def begin_step(self, step: int) -> None:
        self._step = step

    def forward(self, inputs: dict[str, torch.Tensor], draws: Draws) -> dict[str, torch.Tensor]:
        sums = super().forward(inputs, draws)
        return {**sums, "error": sums["error"] * float("inf")} if self._step in self._steps else sums


def test_steps_without_a_finite_gradient_are_skipped(tmp_path: Path) -> None:
    trainer = run(tmp_path, replace(toy(), objective=Exploding({4, 5})))
    assert sum("skipped" in line for line in trainer.lines) == 2
    assert all(bool(value.isfinite().all()) for value in trainer.tensors().values())


def test_a_skipped_step_leaves_no_trace(tmp_path: Path) -> None:
    """Only the samples of such a step are lost: not even what is learned without a gradient."""
    trainers = []
    for steps, stop in (({19}, None), (set[int](), 19)):
        torch.manual_seed(0)
        trainers.append(run(tmp_path / f"{stop}", replace(toy(), objective=Exploding(steps)), stop=stop))
    same(*trainers)


def test_a_run_that_diverges_ends(tmp_path: Path) -> None:
    optimizer = replace(QUICK["optimizer"], max_skipped=3)
    with pytest.raises(Diverged, match=r"4 steps in a row.*optimizer\.lr"):
        run(tmp_path, replace(toy(), objective=Exploding(set(range(8, 20)))), optimizer=optimizer)


@pytest.mark.parametrize("how", ["full", "selective"])
def test_recomputation_changes_nothing(tmp_path: Path, how: str) -> None:
    changed = run(tmp_path / how, parallel=ParallelSettings(recompute=how))
    same(run(tmp_path / "none"), changed)


def test_compiled_blocks_agree(tmp_path: Path) -> None:
    compiled = run(tmp_path / "compiled", steps=3, parallel=ParallelSettings(compile=True))
    same(run(tmp_path / "eager", steps=3), compiled, rtol=1e-3, atol=1e-5)


def test_bfloat16_computes_in_it_and_keeps_float32(tmp_path: Path) -> None:
    half = run(tmp_path / "half", parallel=ParallelSettings(precision="bfloat16"))
    full = run(tmp_path / "full")
    assert {value.dtype for value in half.tensors().values()} == {torch.float32}
    assert losses(tmp_path / "half")[0][1] != losses(tmp_path / "full")[0][1]
    assert losses(tmp_path / "half")[-1][1] == pytest.approx(losses(tmp_path / "full")[-1][1], rel=0.1)
    assert half.step == full.step == 20


def test_a_profile_is_written(tmp_path: Path) -> None:
    run(tmp_path, profile=2)
    assert list((tmp_path / "profile").glob("*.pt.trace.json"))


def test_metrics_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("error")] == list(range(1, 21))


def test_a_clip_of_0_clips_nothing(tmp_path: Path) -> None:
    """Same steps as with a limit that no gradient reaches."""
    trainers = [run(tmp_path / f"{clip}", optimizer=OptimizerSettings(lr=0.01, clip=clip)) for clip in (0, 1e9)]
    same(*trainers)


def test_shards_that_the_ranks_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"parallel\.shard is 3, and the number of ranks, 1, is no multiple"):
        run(tmp_path, parallel=ParallelSettings(shard=3))


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in (folder / "checkpoints").glob("*/manifest.json"))


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", save_every=100)
    stopping = Trainer(toy(), settings(save_every=100), Ranks(), tmp_path / "cut", should_stop=lambda: trained[0] == 7)
    trained = [0]
    stopping._on_progress = lambda progress: trained.__setitem__(0, int(progress.done))
    with pytest.raises(Stopped, match="stopped after step 7"):
        stopping.run()
    assert steps_of(tmp_path / "cut") == [7]
    again = run(tmp_path / "cut", save_every=100)
    same(whole, again)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("ends", "step"), [("stopped", 5), ("validation", 10), ("samples", 10), ("validation", 20)])
def test_what_an_end_left_out_after_a_save_is_done_by_the_next_start(ends: str, step: int, tmp_path: Path) -> None:
    """Metrics are those of a run that nothing disturbed, each once."""

    def component() -> Component:
        return toy(write_samples=lambda objective, folder: {"seen": float(next(objective.parameters()).sum())})

    changes = {"validate_every": 5, "show_every": 10}
    run(tmp_path / "whole", component(), **changes)
    cut = Trainer(component(), settings(**changes), Ranks(), tmp_path / "cut")
    if ends == "stopped":
        cut._should_stop = lambda: cut.step == step
    else:
        name = "_validate" if ends == "validation" else "_write_samples"
        undisturbed = getattr(cut, name)

        def dying() -> None:
            if cut.step == step:
                cut._checkpoints.commit(wait=True)  # the save was begun before
                raise Killed
            undisturbed()

        setattr(cut, name, dying)
    with pytest.raises((Killed, Stopped)):
        cut.run()
    again = run(tmp_path / "cut", component(), **changes)
    assert again.step == 20
    found = [
        sorted(
            (one["step"], name, value)
            for one in metrics(tmp_path / folder)
            for name, value in one.items()
            if name.startswith(("validation/", "samples/", "error"))
        )
        for folder in ("cut", "whole")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == len(set(found[0])) > 20


def test_a_run_that_stops_before_its_first_step_writes_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        Trainer(toy(), settings(), Ranks(), tmp_path, should_stop=lambda: True).run()
    assert not steps_of(tmp_path)


def test_too_many_rejects_end_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    """Goes on where it stopped once the samples can be read again."""
    broken = frozenset(range(37))
    with pytest.raises(TooManyRejects, match=r"105 of the last 140 samples could not be used.* step 14 is saved"):
        run(tmp_path, toy(broken=broken), batch=10, save_every=100)
    assert steps_of(tmp_path) == [14]
    assert run(tmp_path, batch=10, save_every=100).step == 20
    run(tmp_path / "allowed", toy(broken=broken), batch=10, max_rejects=1.0)


def test_a_source_that_goes_away_leaves_a_checkpoint(tmp_path: Path) -> None:
    component = toy()

    class Going:
        def __getattr__(self, name: str) -> Any:
            return getattr(component.stream, name)

        def take(self, count: int, rank: int = 0, world: int = 1) -> list[Item]:
            if component.stream.state()["position"] >= 8 * 12:
                raise DataError("cannot read the shard")
            return component.stream.take(count, rank, world)

    with pytest.raises(DataError, match="cannot read the shard"):
        run(tmp_path / "gone", replace(component, stream=Going()), save_every=100)
    assert steps_of(tmp_path / "gone") == [8]
    same(run(tmp_path / "whole"), run(tmp_path / "gone"))


def test_validation_data_are_checked_before_the_first_step(tmp_path: Path) -> None:
    source = BrokenSource("held-out", [None] * 5, set(range(5)))
    items = [Item(-1 - row, "held-out", lambda row=row: source.load(0, row)) for row in range(5)]
    with pytest.raises(DataError, match="none of 5 samples can be used; the last, of held-out: sample 4 is broken"):
        run(tmp_path, toy(validation=items))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_nothing_good_is_removed_while_steps_are_skipped(tmp_path: Path) -> None:
    optimizer = replace(QUICK["optimizer"], max_skipped=3)
    with pytest.raises(Diverged, match=r"with resume_from; there are those of the steps 6, 7"):
        run(tmp_path, replace(toy(), objective=Exploding(set(range(7, 20)))), optimizer=optimizer, save_every=1)
    assert steps_of(tmp_path) == [6, 7]
    assert any("continues from step-00000006" in line for line in run(tmp_path, resume_from=6).lines)


def test_a_save_waits_for_a_step_that_is_not_skipped(tmp_path: Path) -> None:
    run(tmp_path, replace(toy(), objective=Exploding({4, 5})), save_every=5, keep=9)
    assert steps_of(tmp_path) == [7, 10, 15, 20]


def test_a_run_goes_back_to_a_step(tmp_path: Path) -> None:
    """Checkpoints after it are removed; and the same command again continues the new run, not from that step."""
    whole = run(tmp_path, save_every=4, keep=9)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 in .* there are steps 4, 8, 12, 16, 20"):
        run(tmp_path, resume_from=5)
    run(tmp_path, save_every=4, keep=9, resume_from=8, stop=16)
    assert steps_of(tmp_path) in ([4, 8, 12], [4, 8, 12, 16])
    second = run(tmp_path, save_every=4, keep=9, resume_from=8)
    assert any("continues from step-0000001" in line for line in second.lines)
    same(whole, second)


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    """By the metric that is named; also over a restart."""
    options: dict[str, Any] = {"keep_best": "validation/loss", "validate_every": 2, "save_every": 100, "keep": 1}
    rising = {"optimizer": OptimizerSettings(lr=0.01, schedule="constant", ema=0.0)}
    run(tmp_path, steps=8, **options, **rising)
    found = {one["step"]: one["validation/loss"] for one in metrics(tmp_path) if "validation/loss" in one}
    best = min(found, key=found.__getitem__)
    assert steps_of(tmp_path) == sorted({best, 8})
    run(tmp_path, steps=16, **options, optimizer=OptimizerSettings(lr=1.0, schedule="constant"))
    later = {one["step"]: one["validation/loss"] for one in metrics(tmp_path) if "validation/loss" in one}
    best = min(later, key=later.__getitem__)
    assert best < 16
    assert steps_of(tmp_path) == [best, 16]
    with pytest.raises(DataError, match="keep_best is validation/acc, which is not measured"):
        run(tmp_path / "other", **options | {"keep_best": "validation/acc"})
    with pytest.raises(DataError, match="keep_best is a metric of the validation"):
        run(tmp_path / "none", toy(validation=[]), **options)


def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    run(tmp_path, steps=10)
    second = run(tmp_path, steps=20)
    assert any("continues from step-00000010" in line for line in second.lines)
    assert [one[0] for one in losses(tmp_path)] == list(range(1, 21))
    assert [one["lr"] for one in metrics(tmp_path) if "lr" in one][-1] == pytest.approx(0, abs=1e-9)


def test_averaging_may_begin_and_end_later(tmp_path: Path) -> None:
    plain, averaged = OptimizerSettings(lr=0.01), OptimizerSettings(lr=0.01, ema=0.5)
    run(tmp_path, steps=5, optimizer=plain)
    trainer = Trainer(toy(), settings(steps=10, optimizer=averaged), Ranks(), tmp_path)
    tensors = trainer.tensors()
    assert torch.equal(tensors["average.head.weight"], tensors["model.head.weight"])
    trainer.run()
    run(tmp_path, steps=15, optimizer=plain)


def test_a_full_disk_is_named_when_a_checkpoint_is_written(tmp_path: Path) -> None:
    with disk(tmp_path, "size=40k"), pytest.raises(OSError, match="No space left"):
        run(tmp_path, save_every=1, keep=100)
