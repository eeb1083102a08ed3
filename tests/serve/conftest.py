"""Service that most tests share: with example prompts, four keys, small limits, and samplers that take few steps."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import Examples, finish_model_folder

from .running import Running, serving

EXAMPLES = Examples(
    video=("a red circle moves to the left", "a blue star moves up"),
    picture=("a large green square",),
    question=("Which direction does it move?",),
)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {
        "body_megabytes": 2,
        "in_flight": 12,
        "open_jobs_per_key": 6,
        "seconds": 8,
        "input_seconds": 10,
        "images": 2,
    }
    folder = tmp_path_factory.mktemp("service")
    model = folder / "tiny"
    ModelFolder("tiny").save(model)
    finish_model_folder(model, replace(ModelFolder("tiny").facts, examples=EXAMPLES))
    with serving(
        folder, model=str(model), keys=("alice", "bob", "carol", "dave"), limits=limits, lease_seconds=3
    ) as running:
        yield running
