"""The index of a token run: lengths without opening shards, equal to those of the shards, whoever made it and when."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder
from videolavit.records import token_index
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_index import TokenIndex
from videolavit.training.data import DataError
from videolavit.training.parallel import Ranks
from videolavit.training.sources import content_digest
from videolavit.training.texts import TextEncoder
from videolavit.training.token_sources import TokenSource


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return ModelFolder("tiny")


@pytest.fixture(scope="module")
def texts(model: ModelFolder) -> TextEncoder:
    return TextEncoder(model.text_tokenizer())


@pytest.fixture
def run(tmp_path: Path, model: ModelFolder) -> Path:
    return write_run(tmp_path / "run", model, random_rows(model, 50), shards=5)


def index_of(run: Path) -> TokenIndex:
    return TokenIndex(Folder(str(run), StorageSettings()))


def source_of(run: Path, texts: TextEncoder, ranks: Ranks | None = None) -> TokenSource:
    return TokenSource(str(run), StorageSettings(), texts, ranks=ranks)


def lengths(source: TokenSource) -> list[Any]:
    return [source.lengths(shard, row) for shard, size in enumerate(source.sizes) for row in range(size)]


def loaded_lengths(source: TokenSource) -> list[Any]:
    """Lengths of what is loaded."""
    samples = [source.load(shard, row) for shard, size in enumerate(source.sizes) for row in range(size)]
    return [(len(one.text), [(len(visual), len(motion)) for visual, motion in one.clips]) for one in samples]


def test_lengths_are_those_of_the_samples_with_an_index_and_without(run: Path, texts: TextEncoder) -> None:
    without = source_of(run, texts)
    assert not (run / "index").exists()
    assert lengths(without) == loaded_lengths(without)
    assert index_of(run).update() == 5
    assert index_of(run).update() == 0
    indexed = source_of(run, texts)
    assert lengths(indexed) == lengths(without)
    assert indexed.content == without.content
    assert [file.name for file in sorted((run / "index").rglob("*.parquet"))] == ["00000.parquet"] * 2


def test_lengths_need_no_shard(run: Path, texts: TextEncoder) -> None:
    """Neither does the start of a training: each file of codes could be gone."""
    expected = lengths(source_of(run, texts))
    index_of(run).update()
    source_of(run, texts)
    for shard in (run / "tokens").iterdir():
        shard.write_bytes(b"")
    assert lengths(source_of(run, texts)) == expected


def test_the_identity_is_that_of_runs_before_the_index(run: Path, texts: TextEncoder) -> None:
    """The digest of version 0.3, which checkpoints hold."""
    names = [f"tokens/{number}.parquet" for number in range(5)]
    assert source_of(run, texts).content == content_digest([*names, 10, 10, 10, 10, 10])
    assert content_digest(["a", "ä", 3]) == "bc37d512af8ce943"


def test_new_shards_get_a_file_of_their_own(
    run: Path, model: ModelFolder, texts: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_index, "SHARDS_PER_FILE", 2)
    gone = run / "tokens" / "4.parquet"
    kept = gone.read_bytes()
    gone.unlink()
    assert index_of(run).update() == 4
    gone.write_bytes(kept)
    partly = source_of(run, texts)  # a training that starts while a run goes on
    assert index_of(run).update() == 1
    whole = source_of(run, texts)
    assert lengths(partly) == lengths(whole) == loaded_lengths(whole)
    assert sorted(file.name for file in (run / "index").glob("*.parquet")) == [
        "00000.parquet",
        "00001.parquet",
        "00002.parquet",
    ]


def test_two_writers_of_an_index_leave_every_shard_in_it(run: Path, texts: TextEncoder) -> None:
    """The second finds its number taken, here by one that knew of two shards only."""
    first, second = index_of(run), index_of(run)
    hidden = [run / "tokens" / f"{number}.parquet" for number in (2, 3, 4)]
    contents = [file.read_bytes() for file in hidden]
    taken: list[int] = []
    create = second._folder.create_bytes

    def create_late(name: str, data: bytes) -> bool:
        if not taken:
            for file in hidden:
                file.unlink()
            taken.append(first.update())
            for file, content in zip(hidden, contents, strict=True):
                file.write_bytes(content)
        return create(name, data)

    second._folder.create_bytes = create_late  # type: ignore[method-assign]
    assert second.update() == 3
    assert taken == [2]
    assert lengths(source_of(run, texts)) == loaded_lengths(source_of(run, texts))


def test_a_run_that_cannot_be_written_to_is_read_all_the_same(run: Path, texts: TextEncoder) -> None:
    index_of(run).update()
    (run / "index" / f"text-{texts.digest}").write_text("a file in the way of a folder")
    source = source_of(run, texts)
    assert lengths(source) == loaded_lengths(source)


def test_a_file_that_is_no_shard_is_refused(run: Path, texts: TextEncoder) -> None:
    (run / "tokens" / "9.parquet").write_bytes((run / "tokens" / "0.parquet").read_bytes())
    index_of(run).update()
    (run / "tokens" / "a.parquet").write_bytes((run / "index" / "00000.parquet").read_bytes())
    assert index_of(run).update() == 0
    with pytest.raises(DataError, match=r"tokens/a\.parquet is no token shard"):
        source_of(run, texts)


def test_an_index_that_is_cut_off_is_named(run: Path, texts: TextEncoder) -> None:
    index_of(run).update()
    file = run / "index" / "00000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read the shards of .* and their index"):
        source_of(run, texts)


def test_each_tokenizer_has_lengths_of_its_own(run: Path, model: ModelFolder, texts: TextEncoder) -> None:
    tokenizer = model.text_tokenizer()
    tokenizer.add_tokens(["ab", "cd", "ef"])
    other = TextEncoder(tokenizer)
    assert other.digest != texts.digest
    index_of(run).update()
    source = source_of(run, other)
    assert lengths(source) == loaded_lengths(source) != lengths(source_of(run, texts))


def test_ranks_share_one_look_at_the_run(run: Path, texts: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank knows what one rank knows, and together they count each text once."""
    expected = lengths(source_of(run, texts))
    monkeypatch.setattr(token_index, "SHARDS_PER_FILE", 1)
    index_of(run).update()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, run), nprocs=2)
    seen = [torch.load(run / f"rank-{rank}", weights_only=False) for rank in range(2)]
    assert [one["lengths"] for one in seen] == [expected] * 2
    assert [one["counted"] for one in seen] == [30, 20]
    assert [one["listed"] for one in seen] == [True, False]
    assert [one["error"] for one in seen] == [
        f"no token shards in {run}/none; make them with `videolavit tokenize`"
    ] * 2


def _rank(rank: int, port: int, run: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    texts, counted, listed = TextEncoder(ModelFolder("tiny").text_tokenizer()), [], []
    count, shards = texts.lengths, TokenIndex.shards
    texts.lengths = lambda some: counted.extend(some) or count(some)  # type: ignore[method-assign, func-returns-value]
    TokenIndex.shards = lambda self: listed.append(1) or shards(self)  # type: ignore[method-assign, func-returns-value]
    source = source_of(run, texts, Ranks.here("cpu"))
    found: dict[str, Any] = {"lengths": lengths(source), "counted": len(counted), "listed": bool(listed)}
    with pytest.raises(DataError) as error:
        source_of(run / "none", texts, Ranks.here("cpu"))
    torch.save(found | {"error": str(error.value)}, run / f"rank-{rank}")
    dist.destroy_process_group()
