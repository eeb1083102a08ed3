"""Linear layers with weights packed for CPU kernels, for inference only."""

import torch
from torch import Tensor, nn

PACKED_ROWS = 16
"""Number of input rows for which the packing is optimised; other numbers work as well."""

MIN_WEIGHTS = 1 << 18
"""Smallest number of weights of a layer that is packed: smaller layers fit in the processor's cache."""


def pack_linears(network: nn.Module) -> None:
    """Replaces the large `nn.Linear` layers of a network on a CPU by faster ones with the same results, up to rounding.

    The ordinary layer reached half of the processor's speed. Afterwards the network can be neither trained, moved nor
    saved.
    """
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer.weight.numel() >= MIN_WEIGHTS and _can_be_packed(layer.weight):
                setattr(parent, name, PackedLinear(layer))


class PackedLinear(nn.Module):
    """Linear layer for inference on a CPU.

    Args:
        linear: Layer whose weights are packed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")
        return y


def _can_be_packed(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
