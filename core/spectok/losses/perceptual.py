"""LPIPS, the learned perceptual distance.

R. Zhang, P. Isola, A. A. Efros, E. Shechtman, O. Wang. *The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric.* CVPR 2018.

The package ``lpips`` brings the learned linear heads; the backbone they were learned on is a file
of torchvision's, up to half a gigabyte. It is read from this machine and never replaced by random
weights.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import CheckpointError, InputError
from spectok.machine import shown_path
from spectok.weights import named_tensors, read_file

SOURCE = "https://download.pytorch.org/models"
HASH_LENGTH = 8  # hexadecimal digits of the SHA-256 in a file's name
PREFIX = "features."


@dataclass(frozen=True)
class Backbone:
    """A classification network whose features LPIPS compares.

    Args:
        file: Name of its weights, as torchvision publishes them; ends in the file's hash.
        smallest: Smallest height and width it takes, in pixels.
    """

    file: str
    smallest: int


BACKBONES = {
    "vgg": Backbone("vgg16-397923af.pth", 16),
    "alex": Backbone("alexnet-owt-7be5be79.pth", 31),
    "squeeze": Backbone("squeezenet1_1-b8a52dc0.pth", 17),
}


class LPIPS(nn.Module):
    """The learned perceptual distance of two images, version 0.1.

    Its weights take no gradient, it stays in eval mode, and it follows its input to any device.

    Args:
        network: ``vgg``, which VQGAN trains with, ``alex``, which most tables report, or
            ``squeeze``.
        weights: File of the backbone's weights, ``.pth`` or ``.safetensors`` with torchvision's
            names, taken as it is. None: :func:`cached_backbone`.

    Raises:
        CheckpointError: If the backbone's weights are not on this machine or do not fit.
    """

    def __init__(self, network: str = "vgg", weights: Path | str | None = None):
        super().__init__()
        self.network = network
        path = cached_backbone(network) if weights is None else Path(weights).expanduser()
        self.distance = build_distance(network, read_backbone(path))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in eval mode."""
        return super().train(False)

    def forward(
        self, reconstruction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b"]:
        """Return the distance of each pair of images in [-1, 1], grey or colour.

        Raises:
            InputError: If the images are too small for the backbone.
        """
        check_size(self.network, images.shape[-2:])
        if next(self.parameters()).device != images.device:
            self.to(images.device)
        return self.distance(reconstruction.float(), images.float()).flatten().float()


def check_size(network: str, size: tuple[int, ...]) -> None:
    """Check that images are large enough for a backbone.

    Raises:
        InputError: With the size that works.
    """
    smallest = BACKBONES[network].smallest
    if min(size) < smallest:
        raise InputError(
            f"images of {size[0]}×{size[1]} pixels are too small for LPIPS with {network}, which "
            f"takes {smallest} and more; use larger images or another network"
        )


def cached_backbone(network: str) -> Path:
    """Return torchvision's file of a backbone in torch's cache, checked against its hash.

    Raises:
        CheckpointError: If it is missing (names the file and where it belongs), or its content does
            not match its name.
    """
    file = BACKBONES[network].file
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / file
    if not path.is_file():
        raise CheckpointError(
            f"LPIPS with {network} needs the weights {file}, which are not on this machine: put "
            f"{SOURCE}/{file} into {shown_path(folder)}, or give the path of a copy"
        )
    digest = file_hash(path)
    if not path.stem.endswith(f"-{digest[:HASH_LENGTH]}"):
        raise CheckpointError(
            f"{path} is damaged or another file: its SHA-256 begins with {digest[:HASH_LENGTH]}; "
            f"fetch {SOURCE}/{file} again"
        )
    return path


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read a backbone's convolutions under torchvision's names, less the prefix ``features.``.

    Raises:
        CheckpointError: If the file is missing or holds anything but tensors.
    """
    tensors = {k: v for k, v in read_weights(path).items() if k.startswith(PREFIX)}
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights: floating-point numbers as float32.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no tensors by name.
    """
    remedy = "Give a .pth or .safetensors file with a torchvision model's state"
    state = named_tensors(read_file(path, remedy))
    if not state:
        raise CheckpointError(f"{path} holds no tensors by name. {remedy}")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def build_distance(network: str, backbone: dict[str, Tensor]) -> nn.Module:
    """Build the distance of the package ``lpips`` with its heads and a given backbone.

    Raises:
        CheckpointError: If the weights belong to another network.
    """
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        # torchvision deprecates the argument by which lpips asks for a network without weights
        warnings.filterwarnings("ignore", "The parameter 'pretrained'", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight", UserWarning)
        model = lpips.LPIPS(pretrained=False, net=network, pnet_rand=True, verbose=False)
    model.scaling_layer = type(model.scaling_layer)()  # constants, which meta has no room for
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    state = model.scaling_layer.state_dict(prefix="scaling_layer.")
    state |= heads | {f"lins.{name.removeprefix('lin')}": head for name, head in heads.items()}
    # slice1.0.weight and the like: the slices keep torchvision's names
    wanted = {f"net.{name}": name.partition(".")[2] for name in model.net.state_dict()}
    state |= {ours: backbone[name] for ours, name in wanted.items() if name in backbone}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"the weights given to LPIPS are not those of {network}: {reason}; give a copy of "
            f"{BACKBONES[network].file}"
        ) from error
    return model
