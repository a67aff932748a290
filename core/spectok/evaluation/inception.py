"""The Inception network whose features define FID, with weights from this machine.

Szegedy et al. 2016, as Heusel et al. 2017 used it: trained in TensorFlow on 1,008 outputs, with
pooling branches whose means exclude the padding, and one that takes a maximum. Its weights in
PyTorch format are a file of 96 MB, which is read but never downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import CheckpointError
from spectok.losses.perceptual import read_weights
from spectok.machine import shown_path

FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
"""File names under which FID packages publish the weights."""

NUM_OUTPUTS = 1008
SIZE = 299  # pixels
AVERAGED = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")


class InceptionFeatures(nn.Module):
    """The 2,048 features before Inception's last layer.

    Args:
        weights: File of the weights, ``.pth`` or ``.safetensors``.

    Raises:
        CheckpointError: If the file cannot be read or belongs to another network.
    """

    def __init__(self, weights: Path | str):
        super().__init__()
        self.network = build_network()
        load(self.network, Path(weights).expanduser())
        self.network.fc = nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2048"]:
        """Return features of images in [-1, 1], grey or colour, resized to 299×299 (bilinear)."""
        images = images.float().expand(-1, 3, -1, -1)
        if images.shape[-2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return self.network(images)


def cached_inception() -> Path:
    """Return the file of the weights in torch's cache.

    Raises:
        CheckpointError: If the file is missing; names it and where it belongs.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"needs {FILES[0]} in {shown_path(folder)}, or the path of a copy "
        "(--inception-weights FILE)"
    )


def build_network() -> Any:
    """Return the architecture, without weights: torchvision's with other pooling branches."""
    from torchvision.models import Inception3

    with warnings.catch_warnings(), torch.device("meta"):
        network = Inception3(
            NUM_OUTPUTS, aux_logits=False, transform_input=False, init_weights=False
        )
    for name in (*AVERAGED, "Mixed_7b"):
        change_pooling(getattr(network, name), average_inside)
    change_pooling(network.Mixed_7c, largest)
    return network


def change_pooling(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
    """Make the last branch of a block begin with another pooling."""
    branches = block._forward

    def forward(x: Tensor) -> list[Tensor]:
        return [*branches(x)[:-1], block.branch_pool(pool(x))]

    block._forward = forward


def average_inside(x: Tensor) -> Tensor:
    """Return means over 3×3 pixels, excluding the padding."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """Return maxima over 3×3 pixels."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def load(network: nn.Module, path: Path) -> None:
    """Load the weights.

    Raises:
        CheckpointError: If they cannot be read or belong to another network.
    """
    state = read_weights(path)
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):  # older files leave it out, and eval ignores it
            state.setdefault(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"the weights {path} are not those of the Inception network of FID: {reason}; give a "
            f"copy of {FILES[0]}"
        ) from error
