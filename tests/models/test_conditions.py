"""Visual codes to the keyframe U-Net's conditions: ragged batches, empty images, and what is refused."""

import pytest
import torch

from tests.models import small_networks
from tests.models.small_networks import CONDITIONS
from videolavit.models.keyframe_detokenizer import ConditionDecoder
from videolavit.models.quantizer import CodeOutOfRange

EMPTY = torch.zeros(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def decoder() -> ConditionDecoder:
    return small_networks.condition_decoder()


def test_images_in_a_batch_are_as_alone(decoder: ConditionDecoder) -> None:
    ids = [torch.arange(3), torch.arange(16), torch.tensor([19])]
    context, pooled = decoder(ids)
    assert context.shape == (3, CONDITIONS.max_codes, sum(CONDITIONS.context_dims))
    assert pooled.shape == (3, CONDITIONS.pooled_dim)
    for index, one in enumerate(ids):
        alone = decoder([one])
        torch.testing.assert_close(alone[0][0], context[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone[1][0], pooled[index], atol=1e-5, rtol=1e-4)


def test_an_image_without_codes(decoder: ConditionDecoder) -> None:
    """Conditions are finite, alone and beside another image, which does not notice."""
    context, pooled = decoder([EMPTY])
    beside, beside_pooled = decoder([torch.arange(5), EMPTY])
    for made_of_it in (context, pooled, beside, beside_pooled):
        assert made_of_it.isfinite().all()
    torch.testing.assert_close(beside[0], decoder([torch.arange(5)])[0][0], atol=1e-5, rtol=1e-4)


def test_order_and_number_of_codes_matter(decoder: ConditionDecoder) -> None:
    features = decoder.features([torch.tensor([1, 2]), torch.tensor([2, 1]), torch.tensor([1, 2, 0])])
    apart = torch.pdist(features.flatten(1))
    assert apart.min() > 0.1


def test_too_many_codes(decoder: ConditionDecoder) -> None:
    with pytest.raises(ValueError, match="an image has 17 visual codes; at most 16 fit"):
        decoder([torch.arange(2), torch.zeros(17, dtype=torch.int64)])


@pytest.mark.parametrize("code", [-1, 20])
def test_a_code_that_the_codebook_does_not_have(decoder: ConditionDecoder, code: int) -> None:
    with pytest.raises(CodeOutOfRange, match=f"code {code} is out of range: the codebook has codes 0 to 19"):
        decoder([torch.tensor([3, code])])


def test_without_a_codebook() -> None:
    decoder = small_networks.filled(ConditionDecoder(CONDITIONS))
    with pytest.raises(ValueError, match="no codebook"):
        decoder([torch.arange(2)])
