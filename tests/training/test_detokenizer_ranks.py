"""The VAEs and detokenizers on two real processes, with blocks that are computed again."""

import json
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.conftest import moving_texture
from tests.training.test_sources import write_run
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.training.component import Component
from videolavit.training.components import keyframe_detokenizer, vae, video_detokenizer
from videolavit.training.parallel import Ranks
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainInputs, TrainSettings
from videolavit.training.trainer import Trainer

STEPS = 2


def built(name: str, run: str) -> Component:
    inputs, model = TrainInputs(train=[run], validation=[run]), ModelFolder("tiny")
    if name == "vae":
        of_videos = vae.VAETraining(
            part="video_detokenizer/vae", start="keyframe", height=16, width=16, frames=2, show_samples=1
        )
        return of_videos.build(model, inputs)
    if name == "keyframe-detokenizer":
        pictures = keyframe_detokenizer.KeyframeDetokenizerTraining(
            height=16, width=16, condition_steps=1, validation_samples=1, show_samples=1, show_steps=2
        )
        return pictures.build(model, inputs)
    stages = (video_detokenizer.ResolutionStage(from_sample=0, height=16, width=16),)
    show = video_detokenizer.VideoSettings(video_steps=2)
    videos = video_detokenizer.VideoDetokenizerTraining(
        stages=stages, token_share=0.5, validation_samples=1, show_samples=1, show=show
    )
    return videos.build(model, inputs)


def train(name: str, run: str, folder: Path, recompute: bool) -> None:
    torch.set_num_threads(1)
    settings = TrainSettings(
        steps=STEPS,
        batch=4,
        micro_batch=1,
        log_every=1,
        validate_every=STEPS,
        show_every=STEPS,
        trackers=(),
        optimizer=OptimizerSettings(lr=1e-3, ema=0.5),
        parallel=ParallelSettings(recompute="full" if recompute else "none"),
    )
    Trainer(built(name, run), settings, Ranks.here("cpu"), folder).run()


def _rank(rank: int, world: int, port: int, name: str, run: str, folder: Path) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    train(name, run, folder, recompute=True)
    dist.destroy_process_group()


def measured(folder: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    names = ("loss", "grad_norm", "validation/loss", "samples/psnr")
    return {name: [line[name] for line in lines if name in line] for name in names}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("videos")
    write_mp4(moving_texture(48, 32, 32, 0), folder / "0.mp4", 6)
    return write_run(folder / "run", [{"source": str(folder / "0.mp4")}])


@pytest.mark.parametrize("name", ["vae", "keyframe-detokenizer", "video-detokenizer"])
def test_two_ranks_train_as_one_does(name: str, run: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    train(name, run, tmp_path / "one", recompute=False)
    mp.spawn(_rank, (2, port, name, run, tmp_path / "two"), nprocs=2)
    ours, theirs = measured(tmp_path / "two"), measured(tmp_path / "one")
    assert len(theirs["loss"]) == STEPS
    assert len(theirs["samples/psnr"]) == 1
    for key, values in theirs.items():
        assert ours[key] == pytest.approx(values, rel=1e-2), key
