"""Sharded training (FSDP): each process keeps a part of the weights, gradients and moments.

Accelerate's plugin chooses how, from ``accelerate launch --use_fsdp --fsdp_version 2`` or a file of
``configs/accelerate``. Only models whose weights nothing but the optimiser writes can be sharded:
priors and diffusion models. Checkpoints and the saved model are whole, the same files that a run
without FSDP writes, so either resumes the other, with any number of processes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from spectok.distributed import broadcast_from_main
from spectok.errors import TrainingError
from spectok.training.checkpoint import Parts, Stateful
from spectok.training.train_config import TrainConfig


def is_requested() -> bool:
    """Return whether the launcher was told to shard (``accelerate launch --use_fsdp``)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def refuse_for(what: str) -> None:
    """Refuse to shard what cannot be sharded.

    Raises:
        TrainingError: If the launcher was told to shard.
    """
    if is_requested():
        raise TrainingError(
            f"FSDP does not shard {what}: between steps, quantizers edit whole codebooks outside "
            f"autograd and adaptive weights read whole layers; launch without --use_fsdp, and "
            f"train a tokenizer before its prior, in a launch of its own"
        )


def check_can_shard(config: TrainConfig) -> None:
    """Refuse settings of a training that do not work with FSDP, on whatever machine.

    Raises:
        TrainingError: Names the setting and the remedy.
    """
    if config.compile:
        raise TrainingError("FSDP: train.compile is not supported with it; leave it off")
    if config.mixed_precision == "fp16":
        raise TrainingError(
            "FSDP: it is not supported with fp16, whose scaled gradients are checked whole; set "
            "train.mixed_precision=bf16"
        )


def make_plugin(config: TrainConfig) -> FullyShardedDataParallelPlugin | None:
    """Return Accelerate's plugin as the launcher describes it; None if nothing is to be sharded.

    Raises:
        TrainingError: If it asks for what does not work here.
    """
    if not is_requested():
        return None
    check_can_shard(config)
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, ImportError, KeyError) as error:
        raise TrainingError(f"FSDP: {str(error).splitlines()[0]}") from error
    offloads = os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() in ("1", "true", "yes")
    recomputes = plugin.activation_checkpointing
    refused = {
        "version 1 is not supported; launch with --fsdp_version 2": plugin.fsdp_version != 2,
        "parameters are not offloaded; launch without --fsdp_offload_params": offloads,
        "Accelerate recomputes activations with other random numbers, which is wrong with dropout: "
        "set train.gradient_checkpointing instead of --fsdp_activation_checkpointing": recomputes,
    }
    for reason, applies in refused.items():
        if applies:
            raise TrainingError(f"FSDP: {reason}")
    plugin.cpu_ram_efficient_loading = False  # every process builds the model from the same seed
    return plugin


def switch_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """Let Accelerate prepare models for FSDP, on CPUs too.

    Of a group of processes on CPUs, Accelerate ignores the plugin and trains data-parallel without
    a word, although PyTorch shards there as on GPUs.

    Args:
        accelerator: Made with the plugin.
        plugin: None: nothing is sharded.
    """
    if plugin is None or accelerator.num_processes == 1:
        return
    state = accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = plugin
    plugin.mixed_precision_policy = None  # autocast casts, as it does without FSDP


def is_sharding(accelerator: Accelerator) -> bool:
    """Return whether a run shards its model."""
    return accelerator.distributed_type == DistributedType.FSDP


class Shards:
    """A model that is about to be sharded, and the way from its shards to whole tensors and back.

    Make it before ``accelerator.prepare``; call :meth:`take` after. All processes call all methods
    together.

    Args:
        accelerator: Has the plugin.
        model: The model, still whole. Its attribute ``shard_units``, if it has one, names the
            classes of the modules that are gathered one at a time, unless the launcher does.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.copy_(broadcast_from_main(tensor.data))
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        units = {type(m).__name__ for m in model.modules()} & {*getattr(model, "shard_units", ())}
        if plugin.auto_wrap_policy is None and units:
            plugin.auto_wrap_policy = transformer_auto_wrap_policy
            plugin.transformer_cls_names_to_wrap = sorted(units)
        empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
        self._skeleton: nn.Module = copy.deepcopy(model, dict(empty))
        self._is_main = accelerator.is_main_process
        self.model, self.parameters = model, dict[str, Any]()

    def take(self) -> None:
        """Remember the shards of the model, which is sharded by now."""
        self.parameters = dict(self.model.named_parameters())

    def gather(self) -> nn.Module:
        """Return the whole model on the CPU, of its own class and unaware of FSDP."""
        whole = {name: _whole(p.detach()) for name, p in self.parameters.items()}
        return self._build(whole)

    def scatter(self, whole: nn.Module) -> None:
        """Give the shards the values of a whole model."""
        with torch.no_grad():
            for name, value in whole.named_parameters():
                self.parameters[name].copy_(shard_like(value.detach(), self.parameters[name]))
            ours = dict(self.model.named_buffers())
            for name, value in whole.named_buffers():
                ours[name].copy_(value)

    def gather_parts(self, others: Mapping[str, Stateful]) -> Parts:
        """Return what a checkpoint holds, whole: on the main process; elsewhere nothing."""
        model = self.gather()
        states = {
            name: gather_tree(part.state_dict(), self._is_main) for name, part in others.items()
        }
        if not self._is_main:
            return Parts({})
        return Parts({"model": model}, {name: Fixed(state) for name, state in states.items()})

    def parts_to_load(self, others: Mapping[str, Stateful]) -> Parts:
        """Return what a checkpoint is loaded into; follow it by :meth:`scatter` of the model."""
        shapes = dict(self._skeleton.named_parameters())
        blank = self._build(
            {name: torch.empty(p.shape, dtype=p.dtype) for name, p in shapes.items()}
        )
        return Parts({"model": blank}, {name: Sharded(part) for name, part in others.items()})

    def _build(self, values: Mapping[str, Tensor]) -> nn.Module:
        given = {
            id(p): nn.Parameter(values[name], p.requires_grad)
            for name, p in self._skeleton.named_parameters()
        }
        model = copy.deepcopy(self._skeleton, dict(given))
        ours = dict(self.model.named_buffers())
        for name, buffer in model.named_buffers():
            buffer.copy_(ours[name])
        return model.cpu()


class Fixed:
    """A state that was taken already.

    Args:
        state: Tensors, numbers and containers of them.
    """

    def __init__(self, state: Any):
        self.state = state

    def state_dict(self) -> Any:
        """Return it."""
        return self.state

    def load_state_dict(self, state_dict: Any, /) -> None:
        """Replace it."""
        self.state = state_dict


class Sharded:
    """Loads whole tensors into a part of the training state that holds shards.

    Args:
        part: An optimiser, or a weight average.
    """

    def __init__(self, part: Any):
        self.part = part

    def state_dict(self) -> Any:
        """Return the shards."""
        return self.part.state_dict()

    def load_state_dict(self, state_dict: Any, /) -> None:
        """Cut whole tensors as the parameters are cut, and load them."""
        if isinstance(self.part, torch.optim.Optimizer):
            groups = self.part.param_groups
            state_dict = dict(state_dict) | {"state": _cut_moments(state_dict["state"], groups)}
        elif "shadow" in state_dict:
            cut = {n: shard_like(v, self.part.shadow[n]) for n, v in state_dict["shadow"].items()}
            state_dict = dict(state_dict) | {"shadow": cut}
        self.part.load_state_dict(state_dict)


def _cut_moments(state: Mapping[int, Any], groups: Iterable[Mapping[str, Any]]) -> dict[int, Any]:
    parameters = [p for group in groups for p in group["params"]]
    return {
        number: {
            name: shard_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in moments.items()
        }
        for number, moments in state.items()
    }


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that all processes hold, cut as another one is.

    Args:
        whole: Of the shape of ``like``.
        like: A sharded tensor; any other leaves ``whole`` as it is.
    """
    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gather_tree(tree: Any, keep: bool) -> Any:
    """Return a state with its sharded tensors made whole, one at a time, on the CPU.

    Args:
        tree: Mappings, sequences and tensors; the same on all processes.
        keep: False: take part, and keep nothing.
    """
    if isinstance(tree, Tensor):
        whole = _whole(tree.detach())
        return whole if keep else None
    if isinstance(tree, Mapping):
        return {key: gather_tree(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gather_tree(value, keep) for value in tree)
    return tree


def as_plain(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as an ordinary one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    whole = as_plain(tensor)
    return whole.clone() if whole.device.type == "cpu" else whole.cpu()
