"""Discriminators that any tokenizer can be trained against.

A discriminator is a module built from ``image_shape=(C, H, W)`` and its own options. It maps images
in [-1, 1] to logits of any shape; higher means real.
"""

from __future__ import annotations

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok.errors import InputError

MAX_WIDENING = 8
NUM_GROUPS = 32


class PatchGAN(nn.Sequential):
    """One logit per overlapping patch: Isola et al. 2017, as VQGAN uses it.

    4x4 convolutions: ``num_layers`` of stride 2, one of stride 1, and one of stride 1 to the
    logits, with LeakyReLU(0.2) between them and a norm after all but the first and the last. With
    ``num_layers`` 3, a patch is 70 pixels wide.

    Args:
        image_shape: ``(C, H, W)`` of the images.
        num_layers: Convolutions of stride 2.
        channels: Channels after the first layer; each further layer doubles them, up to eightfold.
        norm: ``"group"``, or ``"batch"`` as in VQGAN. Batch norm uses the statistics of one process
            and one micro-batch, so results then depend on how a batch is split.

    Raises:
        InputError: If the images are too small for that many layers.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_layers: Annotated[int, Field(ge=1)] = 3,
        channels: Annotated[int, Field(ge=1)] = 64,
        norm: Literal["group", "batch"] = "group",
    ):
        check_room(image_shape, num_layers)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, num_layers + 1):
            following = channels * min(2**i, MAX_WIDENING)
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(width, following, 4, stride, 1, bias=False),
                make_norm(norm, following),
                nn.LeakyReLU(0.2),
            ]
            width = following
        super().__init__(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        self.apply(init_small)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 ph pw"]:
        """Return one logit per patch."""
        return super().forward(images)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a norm with a gain and a bias.

    Batch norm keeps no running statistics: a discriminator never runs in eval mode, and the
    statistics would differ between ranks.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels, track_running_stats=False)
    groups = max(g for g in range(1, NUM_GROUPS + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def init_small(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and norms' gains from N(1, 0.02); set norms' biases to zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def check_room(image_shape: tuple[int, int, int], num_layers: int) -> None:
    """Check that the images are large enough to leave a logit after that many layers.

    Raises:
        InputError: Names the smallest size that works.
    """
    smallest = 3 * 2**num_layers
    if min(image_shape[1:]) < smallest:
        raise InputError(
            f"images of {image_shape[1]}×{image_shape[2]} pixels are too small for a PatchGAN of "
            f"num_layers {num_layers}, which takes {smallest} and more; use fewer layers"
        )
