"""A codebook that is learned: its start, its averages, its dead codes; on one rank and on two; resumed."""

import pytest
import torch
import torch.nn.functional as F

from videolavit.models.codebook import CodebookLearner, CodebookSettings, kmeans, use_of_codes
from videolavit.models.quantizer import Quantizer

CODES, DIM = 8, 4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corners(count: int, seed: int = 0, noise: float = 0.05) -> torch.Tensor:
    """Vectors [count, DIM] around the eight signed axes, of lengths that do not matter."""
    axes = torch.cat([torch.eye(DIM), -torch.eye(DIM)])
    chosen = axes[torch.randint(CODES, (count,), generator=generator(seed))]
    return 3 * (chosen + noise * torch.randn(count, DIM, generator=generator(seed + 1)))


def made(**changes: float) -> tuple[CodebookLearner, Quantizer]:
    torch.manual_seed(0)
    settings = CodebookSettings(**{"quantize_from": 6, **changes})  # type: ignore[arg-type]
    return CodebookLearner(CODES, DIM, settings), Quantizer(CODES, DIM).requires_grad_(False)


def see(learner: CodebookLearner, quantizer: Quantizer, step: int, vectors: torch.Tensor | None = None) -> torch.Tensor:
    vectors = corners(64, 10 * step) if vectors is None else vectors
    codes, _ = learner(quantizer, vectors, torch.rand(len(vectors), generator=generator(step)))
    assert isinstance(codes, torch.Tensor)
    return codes


def run(learner: CodebookLearner, quantizer: Quantizer, steps: range) -> None:
    for step in steps:
        see(learner, quantizer, step)
        learner.update(quantizer, lambda value: value)


def test_kmeans_finds_clusters() -> None:
    vectors = F.normalize(corners(200), dim=-1)
    centres = kmeans(vectors, CODES)
    torch.testing.assert_close(centres.norm(dim=-1), torch.ones(CODES))
    assert (vectors @ centres.T).max(-1).values.min() > 0.95
    assert (kmeans(vectors[:3], CODES) @ vectors[:3].T).max(0).values.min() > 0.999  # fewer vectors than codes


def test_vectors_pass_until_the_codes_start_at_their_clusters() -> None:
    learner, quantizer = made()
    before = quantizer.embedding.weight.clone()
    run(learner, quantizer, range(5))
    assert learner.statistics() == {}
    vectors = corners(5)
    torch.testing.assert_close(see(learner, quantizer, 5, vectors), F.normalize(vectors, dim=-1))
    learner.update(quantizer, lambda value: value)
    assert not torch.equal(before, quantizer.embedding.weight)
    learner.eval()
    codes = see(learner, quantizer, 6)
    assert (F.cosine_similarity(codes, corners(64, 60)) > 0.95).all()
    torch.testing.assert_close(codes, quantizer.lookup(quantizer(corners(64, 60))))


def test_the_gradient_passes_straight_through() -> None:
    learner, quantizer = made(quantize_from=0)
    z = corners(6).requires_grad_()
    codes, distances = learner(quantizer, z, torch.rand(6))
    wanted = torch.randn(6, DIM)
    (gradient,) = torch.autograd.grad((codes * wanted).sum(), z, retain_graph=True)
    (same,) = torch.autograd.grad((F.normalize(z, dim=-1) * wanted).sum(), z)
    torch.testing.assert_close(gradient, same)
    torch.testing.assert_close(distances, quantizer.distances(z).min(-1).values)
    (committing,) = torch.autograd.grad(distances.sum(), z)
    closer = quantizer.distances(z - 0.1 * committing).gather(1, quantizer(z)[:, None]).squeeze(1)
    assert (closer <= distances + 1e-6).all()


def test_codes_move_to_the_mean_of_their_vectors_and_stay_unit() -> None:
    learner, quantizer = made(quantize_from=0, decay=0.5)
    target = F.normalize(torch.tensor([1.0, 0.2, 0.0, 0.0]), dim=0)
    used = int(quantizer(target))
    others = [code for code in range(CODES) if code != used]
    before = quantizer.embedding.weight.clone()
    for step in range(3):
        see(learner, quantizer, step, target.repeat(16, 1))
        learner.update(quantizer, lambda value: value)
    torch.testing.assert_close(quantizer.embedding.weight.norm(dim=-1), torch.ones(CODES))
    assert quantizer.embedding.weight[used] @ target > 0.99 > before[used] @ target
    torch.testing.assert_close(quantizer.embedding.weight[others], before[others])


def test_dead_codes_are_revived_and_reported() -> None:
    learner, quantizer = made(quantize_from=0, decay=0.6, revive_below=0.1)
    quantizer.embedding.weight.copy_(F.normalize(torch.ones(CODES, DIM) + 0.01 * torch.randn(CODES, DIM), dim=-1))
    run(learner, quantizer, range(60))
    assert learner.statistics()["codebook_revived"] > 0
    run(learner, quantizer, range(60, 80))
    statistics = learner.statistics()
    assert statistics["codebook_usage"] == 1.0
    assert statistics["codebook_perplexity"] > 0.7 * CODES
    assert learner.statistics() == {}


def test_use_of_codes() -> None:
    statistics = use_of_codes(torch.tensor([2.0, 2.0, 0.0, 0.0]))
    assert statistics == {"codebook_usage": 0.5, "codebook_perplexity": pytest.approx(2.0)}


def test_evaluation_teaches_nothing() -> None:
    learner, quantizer = made(quantize_from=0)
    see(learner, quantizer, 0)
    learner.eval()
    see(learner, quantizer, 1)
    learner.train()
    with torch.no_grad():
        see(learner, quantizer, 2)
    learner.update(quantizer, lambda value: value)
    assert float(learner.uses.sum()) == 64


@pytest.mark.parametrize("quantize_from", [0, 5])
def test_a_rank_without_a_usable_sample_keeps_its_codes(quantize_from: int) -> None:
    learner, quantizer = made(quantize_from=quantize_from)
    before = quantizer.embedding.weight.clone()
    learner.update(quantizer, lambda value: value)
    torch.testing.assert_close(quantizer.embedding.weight, before)
    see(learner, quantizer, 0)
    learner.update(quantizer, lambda value: value)
    assert int(learner.steps) == 2


def test_a_resumed_codebook_goes_on_as_if_nothing_had_been() -> None:
    """Stopped before its start, and stopped behind it."""
    learner, quantizer = made()
    run(learner, quantizer, range(40))
    for stop in (2, 20):
        first, codes = made()
        run(first, codes, range(stop))
        second, resumed = made()
        second.load_state_dict(first.state_dict())
        resumed.load_state_dict(codes.state_dict())
        run(second, resumed, range(stop, 40))
        assert torch.equal(resumed.embedding.weight, quantizer.embedding.weight)
        for name, value in learner.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name


def test_two_ranks_learn_what_one_does() -> None:
    """Each sees half of the vectors; what they exchange is summed, as all ranks' buffers must stay equal."""
    alone, codes = made(revive_below=0.5)
    ranks = [made(revive_below=0.5) for _ in range(2)]
    for step in range(30):
        vectors, keys = corners(64, 10 * step), torch.rand(64, generator=generator(step))
        alone(codes, vectors, keys)
        alone.update(codes, lambda value: value)
        for (learner, quantizer), part in zip(ranks, (slice(0, 24), slice(24, 64)), strict=True):
            learner(quantizer, vectors[part], keys[part])
        update_together(ranks)
    for learner, quantizer in ranks:
        torch.testing.assert_close(quantizer.embedding.weight, codes.embedding.weight)
        torch.testing.assert_close(learner.state_dict(), alone.state_dict())


def update_together(ranks: list[tuple[CodebookLearner, Quantizer]]) -> None:
    """Every rank's update, with sums over all of them: one thread a rank, which meet in every sum."""
    import threading

    sent: dict[int, torch.Tensor] = {}
    meeting = threading.Barrier(len(ranks))

    def update(rank: int) -> None:
        def reduce(value: torch.Tensor) -> torch.Tensor:
            sent[rank] = value
            meeting.wait(10)
            total = torch.stack([sent[one] for one in range(len(ranks))]).sum(0)
            meeting.wait(10)
            return total

        learner, quantizer = ranks[rank]
        learner.update(quantizer, reduce)

    threads = [threading.Thread(target=update, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("wrong", [{"quantize_from": -1}, {"decay": 1.0}, {"revive_below": -0.1}])
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CodebookSettings(**wrong)  # type: ignore[arg-type]
