"""Small files of the largest pictures: decoded as far as the node's memory goes, else refused by that name."""

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.records.kinds.reading import SETTINGS, STORAGE, planned
from videolavit.media import MediaError
from videolavit.records.kinds import read_clips
from videolavit.records.pictures import decode_image
from videolavit.records.source_files import isolated
from videolavit.sandbox.call import IsolatedFunction
from videolavit.sandbox.errors import NeedsTooMuchMemory
from videolavit.sandbox.memory import CODE, SMALLEST, large_limit

SIDE = 8176
MOST_BYTES = 1 << 20


@pytest.fixture(scope="module", params=["I;16 PNG", "RGBA PNG", "RGB PNG", "RGB JPEG"])
def large(request: pytest.FixtureRequest) -> bytes:
    """File of a picture."""
    mode, kind = request.param.split()
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 1} if kind == "JPEG" else {"compress_level": 1}
    Image.new(mode, (SIDE, SIDE)).save(file, kind, **options)
    assert len(file.getvalue()) < 2 * MOST_BYTES
    return file.getvalue()


@pytest.fixture(scope="module")
def large_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video of two frames."""
    file = tmp_path_factory.mktemp("large") / "large.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=6, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((SIDE * 3 // 2, SIDE), 128, np.uint8), format="yuv420p")
        for number in range(2):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert file.stat().st_size < MOST_BYTES
    return file


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node without memory to give."""
    monkeypatch.setattr("videolavit.sandbox.call.usual_limit", lambda: CODE // 2 + SMALLEST)
    monkeypatch.setattr("videolavit.sandbox.call.large_limit", lambda: CODE // 2 + SMALLEST)


@pytest.fixture
def decode() -> Iterator[Any]:
    with closing(IsolatedFunction(decode_image, errors=(MediaError,))) as function:
        yield function


def test_a_picture_is_decoded_in_the_memory_of_the_node(large: bytes, decode: Any) -> None:
    assert decode(large, None, time_limit=120).shape == (SIDE, SIDE, 3)


def test_a_picture_that_does_not_fit_is_not_called_corrupt(large: bytes, decode: Any, little: None) -> None:
    with pytest.raises(NeedsTooMuchMemory):
        decode(large, None, time_limit=120)


def test_a_video_is_decoded_in_the_memory_of_the_node(large_video: Path) -> None:
    if large_limit() < 3 << 30:
        pytest.skip("too little memory is free")
    (row,) = planned(large_video)
    with closing(isolated(read_clips, STORAGE)) as read:
        assert read(row, SETTINGS.sample, STORAGE, time_limit=240).height == SIDE


def test_a_video_that_does_not_fit_is_not_called_corrupt(large_video: Path, little: None) -> None:
    (row,) = planned(large_video)
    with closing(isolated(read_clips, STORAGE)) as read, pytest.raises(NeedsTooMuchMemory):
        read(row, SETTINGS.sample, STORAGE, time_limit=240)
