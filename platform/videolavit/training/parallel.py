"""Ranks, and what is done to an objective from outside: sharding, recomputation, compilation."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.attention.varlen  # defines an operator that is kept
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from videolavit.models.objective import Objective

from .data import DataError
from .settings import ParallelSettings

_KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
)
"""What selective recomputation does not compute again."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and this one among them.

    Args:
        rank: This process.
        world: How many there are. With one, nothing is distributed.
        device: Of this process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def here(cls, device: str = "auto") -> "Ranks":
        """The ranks of the process group, if there is one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), chosen)
        return cls(device=chosen)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks; all of them name the same values."""
        if self.world == 1:
            return dict(values)
        names = sorted(values)
        total = self.sum(torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device))
        return dict(zip(names, total.tolist(), strict=True))

    def agree(self, yes: bool) -> bool:
        """Whether all ranks say yes."""
        return self.sums({"yes": float(yes)})["yes"] == self.world

    def wait(self) -> None:
        """Until all ranks are here."""
        self.agree(True)


def parallelize(objective: Objective, settings: ParallelSettings, ranks: Ranks) -> None:
    """Recomputation and compilation of every unit, then sharding; in place.

    Raises:
        DataError: the ranks cannot be divided so.
    """
    for unit in objective.units():
        if settings.recompute != "none":
            _recompute(unit, settings.recompute)
        if settings.compile:
            unit.compile()
    if ranks.world > 1:
        _shard(objective, settings, ranks)


def _shard(objective: Objective, settings: ParallelSettings, ranks: Ranks) -> None:
    half = torch.bfloat16 if settings.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    frozen = {value for value in objective.parameters() if not value.requires_grad}
    options: dict[str, Any] = {"mesh": _mesh(settings, ranks), "mp_policy": policy, "ignored_params": frozen}
    for unit in objective.units():
        if any(value.requires_grad for value in unit.parameters()):
            fully_shard(unit, **options)
    # inputs and what losses compare with keep their precision, as in a single process
    fully_shard(objective, **options | {"mp_policy": replace(policy, cast_forward_inputs=False)})
    for module in sharded(objective):
        # losses are divided by global counts already
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # what gloo can do
        module.unshard()  # a unit that an early stage leaves out must know its parameters all the same
        module.reshard()


def _mesh(settings: ParallelSettings, ranks: Ranks) -> DeviceMesh:
    shard = settings.shard or ranks.world
    if ranks.world % shard:
        raise DataError(f"{ranks.world} ranks cannot be divided into groups of parallel.shard={shard}")
    kind = ranks.device.type
    if shard == ranks.world:
        return init_device_mesh(kind, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (ranks.world // shard, shard), mesh_dim_names=("replicate", "shard"))


def _recompute(unit: nn.Module, how: str) -> None:
    """Lets a unit's forward be computed again in the backward pass; no weight changes its name."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    options: dict[str, Any] = {"context_fn": contexts} if how == "selective" else {}
    # all randomness is drawn outside of the units, by sample
    unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False, **options)


def _policy(context: Any, operator: Callable[..., Any], *args: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def sharded(objective: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP gathers each for itself; none in a single process."""
    return [module for module in objective.modules() if isinstance(module, FSDPModule)]


def accumulate(objective: nn.Module, last: bool) -> None:
    """Whether the next backward pass sums gradients over the ranks: only behind the last micro batch."""
    for module in sharded(objective)[:1]:
        module.set_requires_gradient_sync(last)


def forget_gathered(objective: nn.Module) -> None:
    """Has FSDP gather weights again that were changed in place: what it gathered last may still be there."""
    for module in sharded(objective):
        module.reshard()


@contextlib.contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Weights that may be used outside of `forward`; all ranks must do the same with them."""
    for module in sharded(objective):
        module.unshard()
    try:
        yield
    finally:
        for module in sharded(objective):
            module.reshard()


def autocast(settings: ParallelSettings, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Computation in bfloat16 where it is safe, if asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
