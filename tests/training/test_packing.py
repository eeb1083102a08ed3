"""Documents side by side: rows that are full, in an order that does not depend on ranks, and walls between them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import loss
from videolavit.models.language_model.attention import document_attention
from videolavit.models.language_model.flops import Flops
from videolavit.models.language_model.objective import NextToken
from videolavit.models.objective import SAMPLE_LOSSES, Batch, Draws
from videolavit.models.presets import load_preset
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.data import DataError, Item
from videolavit.training.packed import Document, PackedCollate, PackedStream
from videolavit.training.settings import TrainInputs
from videolavit.vocabulary.packing import pack
from videolavit.vocabulary.sequences import token_types

LENGTH = 512
TINY = load_preset("tiny")


@given(st.lists(st.integers(1, 50), max_size=80))
def test_packing_holds_every_document_once_and_leaves_little_room(lengths: list[int]) -> None:
    rows = pack(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert all(used <= 50 for used in sums)
    assert sum(used <= 25 for used in sums) <= 1  # two such rows would have become one


def test_the_best_fit_is_taken() -> None:
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelFolder("tiny")
    return write_run(tmp_path_factory.mktemp("run") / "tokens", model, random_rows(model, 60), shards=3)


def stream(run: Path, **settings: object) -> PackedStream:
    chosen = LanguageModelTraining(sequence_length=LENGTH, pack_over=50, **settings)
    made = chosen.build(ModelFolder("tiny"), TrainInputs(train=[str(run)], seed=3)).stream
    assert isinstance(made, PackedStream)
    return made


def contents(items: list[Item]) -> list[list[list[int]]]:
    return [[document.ids.tolist() for document in item.load()] for item in items]


def test_a_stream_goes_on_where_it_was(run: Path) -> None:
    whole = contents(stream(run).take(40))
    first = stream(run)
    first.take(13)
    second = stream(run)
    second.seek(first.state())
    assert contents(second.take(27)) == whole[13:]


def collated(*rows: list[list[int]], length: int | None = LENGTH) -> Batch:
    collate = PackedCollate(TINY.vocabulary, Flops(0, 0), length)
    documents = [[Document(np.array(ids), "source") for ids in row] for row in rows]
    return collate([Item(index, "source", lambda: None) for index in range(len(rows))], documents)


def document(seed: int, length: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, TINY.vocabulary.size, length).tolist()
    return ids


@pytest.fixture(scope="module")
def objective() -> NextToken:
    return NextToken(ModelFolder("tiny").load("language_model"))


def logits(objective: NextToken, batch: Batch) -> torch.Tensor:
    inputs = batch.inputs
    with torch.no_grad():
        return objective.model(
            input_ids=inputs["ids"], position_ids=inputs["positions"], use_cache=False, ends=inputs["ends"]
        ).logits


def test_no_document_sees_another(objective: NextToken) -> None:
    """One document is perturbed, at its first and last id; the others' logits keep every bit."""
    lengths = (100, 200, 60)
    documents = [document(seed, length) for seed, length in enumerate(lengths)]
    before = logits(objective, collated(documents, documents[:1]))
    perturbed = [documents[0], [7, *documents[1][1:-1], 8], documents[2]]
    after = logits(objective, collated(perturbed, documents[:1]))
    start, end = lengths[0], lengths[0] + lengths[1]
    assert not torch.equal(before[0, start:end], after[0, start:end])
    assert torch.equal(before[0, :start], after[0, :start])
    assert torch.equal(before[0, end:], after[0, end:])
    assert torch.equal(before[1], after[1])


def test_a_packed_document_is_the_document_alone(objective: NextToken) -> None:
    documents = [document(seed, length) for seed, length in enumerate((100, 200, 60))]
    packed = logits(objective, collated([documents[0]], documents[1:]))
    plain = ModelFolder("tiny").load("language_model")  # the attention that generation uses
    for row, start, ids in ((0, 0, documents[0]), (1, 0, documents[1]), (1, 200, documents[2])):
        with torch.no_grad():
            alone = plain(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(packed[row, start : start + len(ids)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logits", [loss.LOGITS, 1000])
def test_the_loss_does_not_depend_on_packing(
    logits: int, objective: NextToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums by modality and by document, and gradients, packed and padded, in one piece and in several; the padding has
    no part in them."""
    monkeypatch.setattr(loss, "LOGITS", logits)
    documents = [document(seed, length) for seed, length in enumerate((100, 200, 60))]
    padded_objective = NextToken(ModelFolder("tiny").load("language_model"), packed=False)
    results = []
    for one, batch in (
        (objective, collated(documents[:2], documents[2:])),
        (padded_objective, collated(*([each] for each in documents), length=None)),
    ):
        one.requires_grad_(True)
        sums = one(batch.inputs, Draws(0, batch.positions))
        of_samples = zip(batch.sources, sums[SAMPLE_LOSSES], strict=True)
        sums[SAMPLE_LOSSES] = torch.stack([values for source, values in of_samples if source])
        sums["loss"].backward()
        norm = torch.stack([value.grad.norm() for value in one.parameters() if value.grad is not None])
        one.zero_grad()
        results.append((sums, norm, batch.counts))
    (packed, packed_norm, counts), (padded, padded_norm, padded_counts) = results
    assert counts == padded_counts
    assert counts["loss"] == 360 - 3
    assert counts["text"] + counts["visual"] + counts["motion"] == counts["loss"]
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-2)
    assert packed[SAMPLE_LOSSES][:, 1].tolist() == [99, 199, 59]
    torch.testing.assert_close(packed[SAMPLE_LOSSES][:, 0].sum(), packed["loss"].detach())
    torch.testing.assert_close(packed_norm, padded_norm, rtol=1e-3, atol=1e-3)


def test_a_batch_says_what_is_useful_in_it() -> None:
    batch = collated([document(0, 100), document(1, 50)], [document(2, 30)])
    assert batch.size == 2 * LENGTH
    assert batch.tokens == {"source": 180}
    assert batch.inputs["ends"].tolist() == [0, 100, 150, 512, 542, 1024]
    assert batch.inputs["positions"][0, [0, 99, 100, 149, 150]].tolist() == [0, 99, 0, 49, 0]


def test_noise_is_read_and_never_predicted(run: Path) -> None:
    """Some codes are others, of the same kind; the same ones after a restart; text and markers are as they were."""
    (item,) = stream(run, noise=0.5).take(1)
    read, again = item.load(), item.load()
    of = TINY.vocabulary
    changed = 0
    for document, same in zip(read, again, strict=True):
        assert document.input_ids.tolist() == same.input_ids.tolist()
        differs = document.input_ids != document.ids
        changed += int(differs.sum())
        assert set(document.ids[differs]) <= {*of.visual_range, *of.motion_range}
        assert (token_types(document.input_ids, of) == token_types(document.ids, of)).all()
    assert changed > 20
    batch = PackedCollate(of, Flops(0, 0), LENGTH)([item], [read])
    length = len(read[0].ids)
    assert batch.inputs["ids"][0, :length].tolist() == read[0].input_ids.tolist()
    assert batch.inputs["targets"][: length - 1].tolist() == read[0].ids[1:].tolist()


def test_flops_are_those_of_the_matrix_products() -> None:
    """Against what torch counts, forward and backward: the head is in it, the look-up of embeddings is not."""
    from torch.utils.flop_counter import FlopCounterMode

    model = ModelFolder("tiny").load("language_model").requires_grad_(True)
    model.set_attn_implementation("eager")
    length = 64
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([document(0, length)]), use_cache=False).logits.sum().backward()
    config = model.config
    masked = 12 * config.num_hidden_layers * config.hidden_size * length * length / 2  # eager computes these too
    assert Flops.of(model)([length]) == pytest.approx(counter.get_total_flops() - masked, rel=1e-3)


def test_the_kernel_for_documents_is_called_as_it_wants() -> None:
    """On a GPU that is not there: shapes, dtypes and arguments."""
    with FakeTensorMode(), torch.device("cuda"):
        query = torch.empty(2, 4, 16, 32, dtype=torch.bfloat16)
        key = torch.empty(2, 2, 16, 32, dtype=torch.bfloat16)
        ends = torch.empty(5, dtype=torch.int32)
        mixed, _ = document_attention(torch.nn.Identity(), query, key, key, None, ends=ends, scaling=0.1)
    assert mixed.shape == (2, 16, 4, 32)
    assert mixed.dtype == torch.bfloat16


def test_rows_must_be_long_enough_for_a_clip(run: Path) -> None:
    needed = TINY.visual_tokenizer.num_patches + TINY.motion_tokenizer.num_tokens + 5
    message = f"sequence_length {needed - 1} is shorter than a clip may be; use at least {needed}"
    with pytest.raises(DataError, match=message):
        LanguageModelTraining(sequence_length=needed - 1).build(ModelFolder("tiny"), TrainInputs(train=[str(run)]))
