"""Weights in the order in which a CPU's kernels read them, for networks that are not trained any more."""

import torch
from torch import Tensor, nn

ROWS = 16
"""That the order is chosen for; other numbers of rows are served as well."""

LEAST = 1 << 18
"""Weights of a layer that is worth it: smaller ones lie in the processor's cache."""


def pack_linears(network: nn.Module) -> None:
    """Replaces the large `nn.Linear` of a network on a CPU by layers that do the same, up to rounding, and faster.

    The usual layer was seen to reach half of what a processor can do. Afterwards the network can be neither trained,
    moved nor saved.
    """
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer.weight.numel() >= LEAST and _can_be_packed(layer.weight):
                setattr(parent, name, PackedLinear(layer))


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU.

    Args:
        linear: Whose weights are taken.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
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
