"""Lengths that headers and timestamps declare, and that are not to be believed."""

from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.conftest import moving_texture
from tests.media.videos import make_declaring
from videolavit.media import decompose, probe
from videolavit.records.plan import segment_ranges
from videolavit.records.samples import SampleSettings


@pytest.mark.parametrize("declared", [1e8, 700.0])
def test_a_few_bytes_that_declare_years_are_not_believed(tmp_path: Path, declared: float) -> None:
    file = tmp_path / "long.mkv"
    make_declaring(file, moving_texture(12, 48, 64, 0), declared)
    info = probe(file)
    assert info.seconds == pytest.approx(2.0, abs=0.2)
    assert len(segment_ranges(info, SampleSettings())) == 1
    assert len(list(decompose(file))) == 1


def test_two_frames_that_are_months_apart_are_those_of_a_clock_that_jumped(tmp_path: Path) -> None:
    file = tmp_path / "gap.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for seconds, pixels in zip((0, 10**7), moving_texture(2, 48, 64, 0), strict=True):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                packet.pts = packet.dts = seconds * 1000
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)
    info = probe(file)
    assert info.seconds is not None
    assert info.seconds < 1
    assert segment_ranges(info, SampleSettings()) == [(0.0, None)]
