"""A cheap check that the ranks of a data-parallel run still hold the same codebooks."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from spectok.errors import TrainingError
from spectok.quantizers import Quantizer
from spectok.training.contracts import Record
from spectok.training.log import RunLog

PROCESSES, DIFFERING = "processes", "differing"
"""What a line of the log says: how many processes were compared, and the first tensor that differed
between them, if one did."""
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def codebook_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the saved state of every quantizer in a model, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules()
        if isinstance(module, Quantizer)
        for name, tensor in module.state_dict().items()
    }


@torch.no_grad()
def check_ranks_agree(accelerator: Accelerator, model: nn.Module, log: RunLog, step: int) -> Record:
    """Compare a hash of every codebook tensor over the ranks.

    Codes are edited outside autograd, where nothing else keeps ranks in step; a difference would
    show only as quietly worse results.

    Args:
        accelerator: Of the run.
        model: The model that is trained.
        log: Gets a line with the first tensor that differs.
        step: Steps taken so far.

    Returns:
        What the line of the log says of it; nothing of a single process.

    Raises:
        TrainingError: On every rank; names the first tensor that differs.
    """
    state = codebook_state(model)
    if accelerator.num_processes == 1 or not state:
        return {}
    compared = {PROCESSES: accelerator.num_processes}
    own = torch.stack([hash_bits(t).to(accelerator.device) for t in state.values()])
    everyones = accelerator.gather(own.unsqueeze(0))
    differs = (everyones != everyones[:1]).any(0)  # type: ignore[index]
    for name, bad in zip(state, differs.tolist()):
        if bad:
            log.append({"step": step, **compared, DIFFERING: name})
            raise TrainingError(
                f"{name} differs between processes; a quantizer may edit its codes only in "
                f"after_step, with the functions of spectok.distributed, the same on every rank"
            )
    return compared


def hash_bits(tensor: Tensor) -> Tensor:
    """Return an int64 that depends on every bit of a tensor and on its position."""
    flat = tensor.detach().contiguous().flatten()
    bits = flat.view(_SAME_SIZE[flat.element_size()]).long()
    place = torch.arange(1, bits.numel() + 1, device=bits.device)
    return ((bits ^ (bits >> 17)) * (place * 2654435761 | 1)).sum()
