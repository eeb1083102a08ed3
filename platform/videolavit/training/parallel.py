"""Ranks of a run, and sharding, activation checkpointing and compilation of an objective."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.attention.varlen  # defines an operator of _SAVED_OPERATORS
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from videolavit.models.objective import Objective

from .data import DataError
from .settings import ParallelSettings
from .shares import make_tensors

Shared = TypeVar("Shared")

_SAVED_OPERATORS = (
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
"""Operators whose results selective activation checkpointing keeps."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, world size, and device.

    Args:
        rank: Rank of this process.
        world: Number of ranks. With one, nothing is distributed.
        device: Device of this process.
        host_group: Process group for values of the host, which need not wait for a GPU; None for the default one.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host_group: dist.ProcessGroup | None = None

    @classmethod
    def here(cls, device: str = "auto") -> "Ranks":
        """The ranks of the process group, if there is one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        if dist.is_available() and dist.is_initialized():
            host_group = dist.new_group(backend="gloo") if chosen.type == "cuda" else None
            return cls(dist.get_rank(), dist.get_world_size(), chosen, host_group)
        return cls(device=chosen)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all ranks."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks, which all name the same values."""
        if self.world == 1:
            return dict(values)
        names = sorted(values)
        total = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(total, group=self.host_group)
        return dict(zip(names, total.tolist(), strict=True))

    def sum_counts(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks, which may name different values."""
        of_ranks = self.gather(dict(counts))
        names = sorted({name for values in of_ranks for name in values})
        return {name: float(sum(values.get(name, 0) for values in of_ranks)) for name in names}

    def gather(self, value: Shared) -> list[Shared]:
        """Values of all ranks, on each of them."""
        of_ranks: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(of_ranks, value, group=self.host_group)
        return of_ranks

    def agree(self, yes: bool) -> bool:
        """Reduces a decision over all ranks: True if it is True on each of them."""
        return self.sums({"yes": float(yes)})["yes"] == self.world

    def any(self, yes: bool) -> bool:
        """Reduces a decision over all ranks: True if it is True on one of them."""
        return not self.agree(not yes)

    def wait(self) -> None:
        """Waits for all ranks."""
        self.agree(True)

    def from_first(self, make: Callable[[], Shared]) -> Shared:
        """Gives all ranks what the first one makes. All of them raise the error that it has."""
        if self.world == 1:
            return make()
        made: list[Any] = [None, None]  # value and failure
        if self.is_first:
            try:
                made[0] = make()
            except Exception as error:
                made[1] = error
        dist.broadcast_object_list(made, device=self.device if self.device.type == "cuda" else None)
        value, failure = made
        if failure is not None:
            raise failure
        return value


def parallelize(objective: Objective, settings: ParallelSettings, ranks: Ranks) -> None:
    """Applies activation checkpointing and compilation to every unit, then shards the objective; in place.

    An objective on the meta device gets tensors, of each rank's share, whose values are left open.

    Raises:
        DataError: the ranks cannot be divided into groups of `settings.shard`.
    """
    shard = settings.shard or ranks.world
    if ranks.world % shard:
        raise DataError(
            f"parallel.shard is {shard}, and the number of ranks, {ranks.world}, is no multiple of it; choose another "
            "number of workers, or of ranks that share the weights"
        )
    compiles = ranks.device.type == "cuda" if settings.compile is None else settings.compile
    for unit in objective.units():
        if settings.recompute != "none":
            _checkpoint_activations(unit, selective=settings.recompute == "selective")
        if compiles:
            unit.compile()
    if ranks.world == 1:
        return
    half = torch.bfloat16 if settings.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=getattr(torch, settings.reduce))
    frozen = {value for value in objective.parameters() if not value.requires_grad}
    options: dict[str, Any] = {"mesh": _mesh(shard, ranks), "mp_policy": policy, "ignored_params": frozen}
    for unit in objective.units():
        if any(value.requires_grad for value in unit.parameters()):
            fully_shard(unit, **options)
    # inputs and targets of the loss keep their precision, as in a single process
    fully_shard(objective, **options | {"mp_policy": replace(policy, cast_forward_inputs=False)})
    is_outline = any(value.is_meta for value in objective.parameters())
    if is_outline:
        for network in objective.parts().values():
            make_tensors(network, ranks.device)
    for module in _fsdp_modules(objective):
        # losses are divided by global counts already
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo can sum, but not average
        if not is_outline:  # a unit that an early stage does not use must know its parameters all the same
            module.unshard()
            module.reshard()


def _mesh(shard: int, ranks: Ranks) -> DeviceMesh:
    kind = ranks.device.type
    if shard == ranks.world:
        return init_device_mesh(kind, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (ranks.world // shard, shard), mesh_dim_names=("replicate", "shard"))


def _checkpoint_activations(unit: nn.Module, selective: bool) -> None:
    """Replaces a unit's `forward` by one that is computed again in the backward pass. Parameter names stay."""

    def policy(context: Any, operator: Callable[..., Any], *args: Any, **named: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operator in _SAVED_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    options: dict[str, Any] = {"context_fn": contexts} if selective else {}
    # units draw no random numbers: all are drawn outside of them, by sample
    unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False, **options)


def _fsdp_modules(objective: nn.Module) -> list[FSDPModule]:
    """Modules whose parameters FSDP gathers as one; none in a single process."""
    return [module for module in objective.modules() if isinstance(module, FSDPModule)]


def sync_gradients(objective: nn.Module, enabled: bool) -> None:
    """Sums the gradients of the next backward pass over the ranks, or accumulates them on each rank."""
    for module in _fsdp_modules(objective)[:1]:
        module.set_requires_gradient_sync(enabled)


def reshard(objective: nn.Module) -> None:
    """Drops gathered weights, so that FSDP gathers them again after they were changed in place."""
    for module in _fsdp_modules(objective):
        module.reshard()


@contextlib.contextmanager
def unsharded(objective: nn.Module) -> Iterator[None]:
    """Gathers the weights for use outside of `forward`; all ranks must do the same with them."""
    for module in _fsdp_modules(objective):
        module.unshard()
    try:
        yield
    finally:
        reshard(objective)


def autocast(settings: ParallelSettings, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 if the settings ask for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
