"""Both tokenizers: one image or clip at a time or many, what the mask keeps, and what is refused."""

import pytest
import torch

from tests.models import small_networks
from tests.models.small_networks import MOTION, VISUAL, noise
from videolavit.models.motion_tokenizer import MotionTokenizer, MotionTokenizerConfig, resize_frames
from videolavit.models.quantizer import CodeOutOfRange, Quantizer
from videolavit.models.visual_tokenizer import (
    VisualTokenizer,
    VisualTokenizerConfig,
    gumbel_noise,
    keep_with_noise,
    normalize_images,
)
from videolavit.models.visual_tokenizer.network import smoothed_attention

PATCHES = VISUAL.num_patches


@pytest.fixture(scope="module")
def visual() -> VisualTokenizer:
    return small_networks.visual_tokenizer()


@pytest.fixture(scope="module")
def motion() -> MotionTokenizer:
    return small_networks.motion_tokenizer()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return noise(3, 3, 28, 28)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return noise(3, 2, 8, 8, 12)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- images -------------------------------------------------------------------------------------------------------


def test_tokenizing_is_deterministic(visual: VisualTokenizer, images: torch.Tensor) -> None:
    first = visual.encode(images)
    torch.manual_seed(1)
    second = visual.encode(images)
    assert [one.tolist() for one in first] == [one.tolist() for one in second]
    keep = visual.keep_log_probs(visual.patch_features(images))[..., 0].exp() > 0.5
    assert [len(one) for one in first] == keep.sum(1).tolist()
    assert 0 < sum(map(len, first)) < 3 * PATCHES


def test_a_drawn_selection_follows_its_generator(visual: VisualTokenizer, images: torch.Tensor) -> None:
    features = visual.patch_features(images)
    draws = [visual.choose(features, generator(seed)) for seed in (5, 5, 6)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    ids = [visual.encode(images, generator=generator(5)) for _ in range(2)]
    assert [one.tolist() for one in ids[0]] == [one.tolist() for one in ids[1]]
    assert [len(one) for one in ids[0]] == draws[0].sum(1).tolist()


def test_patches_are_drawn_as_likely_as_the_selector_says() -> None:
    probabilities = torch.tensor([0.02, 0.3, 0.5, 0.9])
    log_probs = torch.stack([probabilities, 1 - probabilities], dim=-1).log().expand(20000, -1, -1)
    kept = keep_with_noise(log_probs, gumbel_noise(log_probs.shape, generator(0)))
    torch.testing.assert_close(kept.float().mean(0), probabilities, atol=0.015, rtol=0)  # four standard errors


def test_images_in_a_batch_are_as_alone(visual: VisualTokenizer, images: torch.Tensor) -> None:
    codes, features = visual.encode(images), visual.embed(images)
    for index in range(3):
        alone = images[index : index + 1]
        assert visual.encode(alone)[0].equal(codes[index])
        torch.testing.assert_close(visual.embed(alone)[0], features[index], atol=1e-5, rtol=1e-4)


def test_all_kept_and_none_kept(visual: VisualTokenizer, images: torch.Tensor) -> None:
    keep = torch.zeros(3, PATCHES, dtype=torch.bool)
    keep[1] = True
    keep[2, [2, 9]] = True
    counts = [0, PATCHES, 2]
    codes, features = visual.encode(images, keep), visual.embed(images, keep)
    assert [list(one.shape) for one in codes] == [[count] for count in counts]
    assert [list(one.shape) for one in features] == [[count, 8] for count in counts]
    assert all(one.isfinite().all() for one in features)
    assert all(0 <= int(code) < VISUAL.num_codes for one in codes for code in one)
    assert codes[0].dtype == torch.int64


def test_a_merged_patch_looks_back(visual: VisualTokenizer, images: torch.Tensor) -> None:
    """The merger's self-attention is causal but for its smoothing, which lets a millionth of later patches through."""
    features = visual.patch_features(images)
    earlier = torch.ones(PATCHES, PATCHES, dtype=torch.bool).tril()
    attention = visual.causal_encoder.blocks[0].token_causal_attn
    changed = features.clone()
    changed[:, 7] += 1
    apart = (attention(changed, earlier) - attention(features, earlier)).abs().amax((0, 2))
    assert 100 * apart[:7].max() < apart[7:].min()


def test_attention_to_nothing_averages_everything() -> None:
    query, key, value = (noise(1, 2, 5, 4, seed=seed) for seed in range(3))
    nothing = torch.zeros(5, 5, dtype=torch.bool)
    expected = value.mean(2, keepdim=True).expand_as(value)
    torch.testing.assert_close(smoothed_attention(query, key, value, nothing), expected)


def test_wrong_images_and_masks(visual: VisualTokenizer, images: torch.Tensor) -> None:
    for wrong in (images[0], images[:, :1], images[..., :-1], noise(1, 3, 56, 56)):
        with pytest.raises(ValueError, match=r"images must be \[batch, 3, 28, 28\]"):
            visual.encode(wrong)
    with pytest.raises(ValueError, match=rf"keep must be \[3, {PATCHES}\]"):
        visual.encode(images, torch.ones(2, PATCHES))


def test_a_tokenizer_without_continuous_features() -> None:
    with torch.device("meta"):
        plain = VisualTokenizer(VisualTokenizerConfig(features_dim=None, width=16, vit_heads=2, merger_heads=2))
    with pytest.raises(ValueError, match="features_dim is not set"):
        plain.embed(torch.zeros(1, 3, 224, 224, device="meta"))


def test_normalized_images_have_clips_statistics() -> None:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    low, high = normalize_images(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 2, 2, 3))
    torch.testing.assert_close(low[:, 0, 0], -mean / std)
    torch.testing.assert_close(high[:, 1, 1], (1 - mean) / std)


# ---- motion -------------------------------------------------------------------------------------------------------


def test_clips_in_a_batch_are_as_alone(motion: MotionTokenizer, clips: torch.Tensor) -> None:
    ids = motion.encode(clips)
    assert ids.shape == (3, MOTION.num_tokens)
    assert len(ids.unique()) > 1
    decoded = motion.decode(ids)
    for index in range(3):
        assert motion.encode(clips[index : index + 1])[0].equal(ids[index])
        torch.testing.assert_close(motion.decode(ids[index : index + 1])[0], decoded[index], atol=1e-5, rtol=1e-4)


def test_published_clips_have_135_codes() -> None:
    assert MotionTokenizerConfig().num_tokens == 135
    assert MotionTokenizerConfig().token_grid == (3, 5, 9)


def test_decoded_motion_for_the_video_network(motion: MotionTokenizer, clips: torch.Tensor) -> None:
    ids = motion.encode(clips)
    torch.testing.assert_close(motion.decode_to(ids, 8, 12), motion.decode(ids) / 10)
    assert motion.decode_to(ids, 6, 20).shape == (3, 2, 8, 6, 20)
    still = torch.full((1, 2, 8, 8, 12), 0.25)
    torch.testing.assert_close(resize_frames(still, 5, 7), torch.full((1, 2, 8, 5, 7), 0.25))


def test_wrong_motion_and_ids(motion: MotionTokenizer, clips: torch.Tensor) -> None:
    for wrong in (clips[0], clips[:, :1], clips[:, :, :4], clips.transpose(3, 4)):
        with pytest.raises(ValueError, match=r"motion must be \[batch, 2, 8, 8, 12\]"):
            motion.encode(wrong)
    for shape in ((1, MOTION.num_tokens - 1), (MOTION.num_tokens,), (1, *MOTION.token_grid)):
        with pytest.raises(ValueError, match=rf"motion ids must be \[batch, {MOTION.num_tokens}\]"):
            motion.decode(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("code", [-1, MOTION.num_codes, 10**9])
def test_a_code_that_the_codebook_does_not_have(motion: MotionTokenizer, code: int) -> None:
    ids = torch.zeros(2, MOTION.num_tokens, dtype=torch.int64)
    ids[1, 3] = code
    with pytest.raises(CodeOutOfRange, match=f"code {code} is out of range: the codebook has codes 0 to 11"):
        motion.decode(ids)


def test_a_code_vector_is_its_own_nearest() -> None:
    quantizer = Quantizer(50, 6)
    ids = torch.arange(50)
    assert quantizer(quantizer.lookup(ids)).equal(ids)
    assert quantizer.lookup(ids[:0]).shape == (0, 6)
