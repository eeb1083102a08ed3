"""The model of a run's cost: measured on variants of real videos, fitted, and tried on sources that it never saw.

python -m benchmarks.estimate --videos DIR --synthetic 48 [--measured FILE]    measures what FILE lacks, then fits
python -m benchmarks.estimate                                                  fits the stored figures again
"""

import argparse
import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from videolavit.media import MediaError, VideoInfo, probe
from videolavit.records.cost import COST, cost_units
from videolavit.records.rows import PlanRow
from videolavit.records.samples import SampleSettings, decompose_segment
from videolavit.synth import render_corpus

from .decompose import VIDEO_SUFFIXES
from .shared import console, result_table, verdict

FIGURES = Path(__file__).with_name("estimate.csv")
VARIANT_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "mpeg4": {},
    "mpeg2video": {},
}
VARIANT_SIZES = ((320, 180), (640, 360), (854, 480), (1280, 720))
VARIANT_RATES = (12, 15, 24, 25, 30, 50)
BITS_A_PIXEL = (0.03, 0.08, 0.2)
VARIANT_SECONDS = (2, 4, 8)

os.environ.setdefault("SVT_LOG", "1")  # errors only

FIRST_SYNTHETIC = 1000
"""Number of the first rendered video as a source."""

FIT_POWER, FIT_RIDGE, LEAST_COST = 0.8, 0.001, 1e-10

FIT_ROUNDS = 2000
"""Rounds of the fit, which converges after some hundreds."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A video in another form. Every source has its own, so that no two sources differ in one thing only."""

    encoder: str
    width: int
    height: int
    rate: int
    bits_a_pixel: float
    seconds: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured video: what its header says, and what decomposing it took. Nothing names the video.

    Args:
        source: Number of the source; synthetic ones begin at `FIRST_SYNTHETIC`.
        variant: Number of the variant; 0 for the file as it was.
        core_seconds: Process time of the decomposition, the shortest of several.
    """

    source: int
    variant: int
    codec: str
    width: int
    height: int
    seconds: float
    frame_rate: float
    num_frames: int
    bit_rate: int
    pixel_format: str
    core_seconds: float

    @property
    def info(self) -> VideoInfo:
        """Header of the video."""
        own = {field.name: getattr(self, field.name, "") for field in fields(VideoInfo)}
        return VideoInfo(**own)

    @property
    def is_held_out(self) -> bool:
        """True for all of a source's variants, or for none. Both halves have all codecs."""
        return self.source // 2 % 2 == 1

    @property
    def is_synthetic(self) -> bool:
        """True for a video that was rendered."""
        return self.source >= FIRST_SYNTHETIC


def main(argv: Sequence[str] | None = None) -> None:
    """Measures where videos are named, fits, and shows coefficients and errors on held-out sources."""
    options = _parser().parse_args(argv)
    known = read_measured(options.measured) if options.measured.exists() else []
    if options.videos is not None:
        measure(videos_in(options.videos), known, options.measured, options.variants, options.repeat)
    if options.synthetic:
        with tempfile.TemporaryDirectory() as folder:
            render_corpus(folder, options.synthetic)
            rendered = videos_in(Path(folder) / "videos")
            measure(rendered, known, options.measured, 0, options.repeat, FIRST_SYNTHETIC)
    known = read_measured(options.measured)
    fitted = fit([one for one in known if not one.is_held_out])
    show(known, fitted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate", description="The model of a run's cost.")
    add = parser.add_argument
    add("--videos", type=Path, help="folder of videos to measure; without it the stored figures are fitted again")
    add("--synthetic", type=int, default=0, help="number of rendered videos to measure, as they are")
    add("--measured", type=Path, default=FIGURES, help="CSV file of the figures, which is added to")
    add("--variants", type=int, default=3, help="variants of each video")
    add("--repeat", type=int, default=2, help="repetitions, of which the shortest counts")
    return parser


# ---- measuring ----------------------------------------------------------------------------------------------------


def videos_in(folder: Path) -> list[Path]:
    """Videos of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)


def measure(
    videos: Sequence[Path], known: Sequence[Measured], file: Path, variants: int, repeat: int, first_source: int = 0
) -> None:
    """Measures videos and variants of them; each figure is stored at once.

    Args:
        first_source: Number of the first video as a source.
    """
    done = {(one.source, one.variant) for one in known}
    with contextlib.suppress(MediaError):
        measured(videos[0].read_bytes(), 0, 0, 1)  # loads what later ones find loaded
    with file.open("a") as sink:
        writer = csv.DictWriter(sink, [field.name for field in fields(Measured)], lineterminator="\n")
        if not sink.tell():
            writer.writeheader()
        for variant in range(variants + 1):  # all sources first, so that an interrupted measurement has all of them
            for source, video in enumerate(videos, first_source):
                if (source, variant) in done:
                    continue
                try:
                    data = recode(video, variant_of(source, variant)) if variant else video.read_bytes()
                    writer.writerow(asdict(measured(data, source, variant, repeat)))
                except (MediaError, av.FFmpegError) as error:
                    console.print(f"left out: video {source} as variant {variant}: {error}")
                sink.flush()


def variant_of(source: int, number: int) -> Variant:
    """A variant of a source, from 1."""
    choice = np.random.default_rng([source, number])
    width, height = VARIANT_SIZES[choice.integers(len(VARIANT_SIZES))]
    encoder = list(VARIANT_ENCODERS)[(source + 2 * number) % len(VARIANT_ENCODERS)]
    return Variant(
        encoder=encoder,
        width=width,
        height=height,
        rate=25 if encoder == "mpeg2video" else int(choice.choice(VARIANT_RATES)),  # MPEG-2 knows few rates
        bits_a_pixel=float(choice.choice(BITS_A_PIXEL)),
        seconds=int(choice.choice(VARIANT_SECONDS)),
    )


def recode(video: Path, variant: Variant) -> bytes:
    """A video in another form, as a Matroska file. A short one is repeated."""
    sink = io.BytesIO()
    with av.open(video) as source, av.open(sink, "w", format="matroska") as target:
        stream = target.add_stream(variant.encoder, rate=variant.rate, options=VARIANT_ENCODERS[variant.encoder])
        stream.width, stream.height, stream.pix_fmt = variant.width, variant.height, "yuv420p"
        stream.bit_rate = int(variant.bits_a_pixel * variant.width * variant.height * variant.rate)
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, variant.rate)
        for index, frame in enumerate(_resampled(source, variant)):
            frame.pts, frame.time_base = index, Fraction(1, variant.rate)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return sink.getvalue()


def _resampled(source: Any, variant: Variant) -> Iterator[av.VideoFrame]:
    """Frames of a variant: the last one that is there at each tick, from the beginning again where a video ends."""
    tick, start = 0, 0.0
    while True:
        first, time = None, 0.0
        for frame in source.decode(video=0):
            first = float(frame.time or 0.0) if first is None else first
            time = float(frame.time or 0.0) - first
            while tick <= (start + time) * variant.rate:
                if tick >= variant.seconds * variant.rate:
                    return
                yield frame.reformat(variant.width, variant.height, "yuv420p")
                tick += 1
        start += time + 1 / variant.rate
        source.seek(0)


def measured(data: bytes, source: int, variant: int, repeat: int) -> Measured:
    """Figures of a video. Raises MediaError."""
    info = probe(io.BytesIO(data))
    row = PlanRow(source="", url="", kind="video", sample_id="", start_seconds=0.0, planned_seconds=info.seconds)
    samples = [decompose_segment(io.BytesIO(data), row, SampleSettings()) for _ in range(repeat)]
    names = ("codec", "width", "height", "frame_rate", "num_frames", "bit_rate", "pixel_format")
    facts = {name: getattr(info, name) for name in names}
    return Measured(
        source=source,
        variant=variant,
        seconds=round(info.seconds or samples[0].end_seconds, 3),
        core_seconds=round(min(sample.work_seconds for sample in samples), 4),
        **facts,
    )


def read_measured(file: Path) -> list[Measured]:
    """Figures of a CSV file."""
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Measured)}
    return [Measured(**{name: kinds[name](value) for name, value in row.items()}) for row in rows]


# ---- fitting ------------------------------------------------------------------------------------------------------


def fit(known: Sequence[Measured]) -> dict[str, float]:
    """Coefficients with the least squared errors, none below 0, by coordinate descent.

    Errors are nearly relative: long videos count a little more, since they decide the total. The ridge towards the
    coefficients that ship holds those that few videos tell anything about.
    """
    names, fps = list(COST), SampleSettings().fps
    units = [cost_units(one.info, one.seconds, fps) for one in known]
    rows = np.array([[unit.get(name, 0.0) for name in names] for unit in units])
    measured_seconds = np.array([one.core_seconds for one in known])
    before = np.array([COST[name] or LEAST_COST for name in names])
    weights = measured_seconds**-FIT_POWER
    rows, goal = rows * before * weights[:, None], measured_seconds * weights  # coefficients relative to those before
    found, ridge = np.ones(len(names)), FIT_RIDGE
    for _ in range(FIT_ROUNDS):
        for index in range(len(names)):
            rest = goal - rows @ found + rows[:, index] * found[index]
            best = (rows[:, index] @ rest + ridge) / (rows[:, index] @ rows[:, index] + ridge)
            found[index] = max(best, 0.0)
    return {name: float(f"{value:.3g}") for name, value in zip(names, found * before, strict=True)}


@dataclass(frozen=True)
class Errors:
    """Errors of estimates, relative to what was measured.

    Args:
        total: Error of the sum.
        files: Error of each file.
    """

    total: float
    files: NDArray[np.float64]

    @property
    def near(self) -> float:
        """Share of the files within 35 %."""
        return float((np.abs(self.files) <= 0.35).mean())

    @classmethod
    def of(cls, known: Sequence[Measured], cost: dict[str, float]) -> "Errors":
        """Errors of a model."""
        fps = SampleSettings().fps
        units = [cost_units(one.info, one.seconds, fps) for one in known]
        ours = np.array([sum(cost[name] * number for name, number in unit.items()) for unit in units])
        theirs = np.array([one.core_seconds for one in known])
        return cls(float(ours.sum() / theirs.sum() - 1), ours / theirs - 1)


def show(known: Sequence[Measured], fitted: dict[str, float]) -> None:
    """Prints the fitted coefficients beside those that ship, and the errors of both on held-out sources."""
    table = result_table("core-seconds of a unit", "unit", "ships", "fitted")
    for name, value in fitted.items():
        table.add_row(name, f"{COST[name]:.3g}", f"{value:.3g}")
    console.print(table)
    parts = {
        "real, fitted on": (False, False),
        "real, held out": (False, True),
        "synthetic, fitted on": (True, False),
        "synthetic, held out": (True, True),
    }
    table = result_table("errors", "videos", "number", "total", "within 35 %", "total, ships", "within 35 %, ships")
    for title, kind in parts.items():
        some = [one for one in known if (one.is_synthetic, one.is_held_out) == kind]
        if some:
            new, old = Errors.of(some, fitted), Errors.of(some, COST)
            table.add_row(
                title, str(len(some)), f"{new.total:+.1%}", f"{new.near:.0%}", f"{old.total:+.1%}", f"{old.near:.0%}"
            )
    console.print(table)
    for name, synthetic in {"real": False, "synthetic": True}.items():
        some = [one for one in known if one.is_held_out and one.is_synthetic == synthetic]
        if some:
            errors = Errors.of(some, COST)
            verdict(f"error in total, held out, {name}", abs(errors.total), 0.2, at_least=False)
            verdict(f"share within 35 %, held out, {name}", errors.near, 0.8, at_least=True)


if __name__ == "__main__":
    main()
