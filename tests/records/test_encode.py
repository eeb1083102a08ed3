"""Prepared shards to rows of codes, and what is said of them."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.tokens import MOTION_CODES, VISUAL_CODES, write_model
from videolavit.models.network import ModelError
from videolavit.records import schema
from videolavit.records.encode import Encoder, read_tokenizers
from videolavit.records.inputs import InputSettings
from videolavit.records.prepare import Prepared, PrepareSettings
from videolavit.records.prepared import PreparedShard, ShardBuilder
from videolavit.records.rows import PlanRow, Reject
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import TOKEN_SHARDS, ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.tokenizer_info import EncodeSettings, TokenizerInfo
from videolavit.records.usage import CodeUsage, TokenStatistics

SETTINGS = PrepareSettings(SampleSettings(), InputSettings(), 224, (20, 36))
SIZES = {"video": (3, 3), "image": (1, 0), "text": (0, 0)}


@pytest.fixture(scope="module", autouse=True)
def _torch_as_before() -> Iterator[None]:
    """An encoder sets up its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def tokenizers(model: Path) -> TokenizerInfo:
    return read_tokenizers(str(model))


def _shard(*kinds: str) -> PreparedShard:
    """Samples of noise that went through a block; the seed is the position."""
    builder = ShardBuilder("0.parquet", [pa.field("id", pa.int64())])
    for index, kind in enumerate(kinds):
        rng = np.random.default_rng(index)
        pictures, motions = SIZES[kind]
        sample = Prepared(
            text=kind,
            pictures=rng.integers(0, 255, (pictures, 224, 224, 3), np.uint8),
            motion=rng.standard_normal((motions, 2, 24, 20, 36)).astype(np.float32),
            end_seconds=float(index) if kind == "video" else None,
        )
        start = 0.0 if kind == "video" else None
        row = PlanRow(
            sample_id=str(index),
            source=f"s{index}",
            url=f"s{index}",
            kind=kind,
            start_seconds=start,
            extra={"id": index},
        )
        builder.add(row, sample)
    return PreparedShard.from_block(builder.to_block(), SETTINGS)


def _encoder(model: Path, tokenizers: TokenizerInfo, clips: int) -> Encoder:
    return Encoder(EncodeSettings(model=str(model), token_budget=256 * clips), tokenizers, "cpu")


@pytest.fixture(scope="module")
def rows(model: Path, tokenizers: TokenizerInfo) -> pa.Table:
    return _encoder(model, tokenizers, 1).rows(_shard("text", "video", "image", "video"))


def test_codes_come_back_to_their_samples(model: Path, rows: pa.Table) -> None:
    from videolavit.models.folder import ModelFolder
    from videolavit.models.visual_tokenizer import normalize_images

    visual = ModelFolder(model).load("visual_tokenizer")
    for index, row in enumerate(rows.to_pylist()):
        pictures, motions = SIZES[row["modality"]]
        assert len(row["clips"]) == pictures
        assert [len(clip["motion_tokens"]) for clip in row["clips"]] == [135 if motions else 0] * pictures
        assert row["num_tokens"] == sum(len(clip["visual_tokens"]) for clip in row["clips"]) + 135 * motions
        assert row["id"] == index
        images = np.random.default_rng(index).integers(0, 255, (pictures, 224, 224, 3), np.uint8)
        for clip, image in zip(row["clips"], images, strict=True):
            assert clip["visual_tokens"] == visual.encode(normalize_images(image[None]))[0].tolist()


def test_codes_do_not_depend_on_neighbours(model: Path, tokenizers: TokenizerInfo, rows: pa.Table) -> None:
    """Alone, or in batches of five that go over the samples' ends and are filled up."""
    batched = _encoder(model, tokenizers, 5).rows(_shard("text", "video", "image", "video"))
    assert batched["clips"].to_pylist() == rows["clips"].to_pylist()


def test_a_shard_without_samples_and_one_of_texts(model: Path, tokenizers: TokenizerInfo) -> None:
    encoder = _encoder(model, tokenizers, 1)
    assert encoder.rows(_shard("text", "text"))["num_tokens"].to_pylist() == [0, 0]
    reject = Reject(
        sample_id="a",
        source="a.mp4",
        start_seconds=0.0,
        stage="tokenize",
        error_type="CorruptVideo",
        message="cut",
        attempts=1,
        seconds=0.5,
    )
    empty = PreparedShard.from_block(ShardBuilder("0.parquet", [], rejects=[reject]).to_block(), SETTINGS)
    assert encoder.rows(empty).num_rows == 0
    assert empty.rejects == [reject]


def test_another_model_on_a_node_is_refused(tokenizers: TokenizerInfo, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="another visual_tokenizer here than where the run was started"):
        _encoder(other, tokenizers, 1)


def test_half_precision(model: Path, tokenizers: TokenizerInfo) -> None:
    settings = EncodeSettings(model=str(model), dtype="bfloat16")
    (row,) = Encoder(settings, tokenizers, "cpu").rows(_shard("video")).to_pylist()
    assert all(0 <= code < MOTION_CODES for clip in row["clips"] for code in clip["motion_tokens"])


def test_statistics_of_a_shard(rows: pa.Table, tokenizers: TokenizerInfo, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), StorageSettings())
    extra = [field for field in rows.schema if field.name not in schema.TOKENS.names]
    with ShardWriter(folder, "0.parquet", extra, TOKEN_SHARDS, tokenizers.metadata()) as writer:
        writer.add(rows)
        writer.commit()
        assert writer.counts["clips"] == 6
    statistics = TokenStatistics()
    for _ in range(2):
        statistics.add(pq.ParquetFile(tmp_path / "tokens" / "0.parquet"))
    assert statistics.modalities == {"video": 4, "image": 2, "text": 2}
    codes = [code for row in rows.to_pylist() for clip in row["clips"] for code in clip["visual_tokens"]]
    usage = statistics.usage["visual"]
    assert (usage.total, usage.used, len(usage.counts)) == (2 * len(codes), len(set(codes)), VISUAL_CODES)
    assert statistics.usage["motion"].total == 2 * 6 * 135
    assert statistics.values()["clips of a video"].tolist() == [3] * 4
    assert dict(statistics.facts())["motion codes"] == "1,620"


def test_perplexity() -> None:
    assert CodeUsage(np.array([5, 5, 0, 5, 5])).perplexity == pytest.approx(4)
    assert CodeUsage(np.array([0, 9])).perplexity == pytest.approx(1)
    uneven = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert CodeUsage(np.array([3, 1])).perplexity == pytest.approx(uneven)
    assert CodeUsage(np.array([0, 0])).perplexity == 0


def test_the_budget_decides_the_batch(tokenizers: TokenizerInfo) -> None:
    settings = EncodeSettings(model="m", token_budget=1000)
    assert settings.batch(tokenizers, "cpu") == 3
    assert EncodeSettings(model="m", token_budget=1).batch(tokenizers, "cpu") == 1
    assert EncodeSettings(model="m").batch(tokenizers, "cuda") > EncodeSettings(model="m").batch(tokenizers, "cpu")
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        EncodeSettings(model="m", token_budget=0)
