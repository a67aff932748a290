"""Pictures of spectra and of the features inside a model (Fig. 1 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spectok_favae.model import FAVAE

Pictures = dict[str, Tensor]
"""Name -> (B, 3, H, W) in [-1, 1], as :func:`spectok.images.save_grid` takes them."""

COLOURS = "RdYlGn"  # as in the paper: red for weak frequencies, green for strong ones


def amplitudes(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Return log10 amplitudes, averaged over channels, with frequency zero in the centre."""
    spectrum = torch.fft.fft2(maps.detach().float(), norm="ortho")
    return torch.fft.fftshift(spectrum.abs().clamp_min(1e-6).log10().mean(1), dim=(-2, -1))


def colour(values: Float[Tensor, "b h w"], low: Tensor, high: Tensor) -> Tensor:
    """Return values between two limits as colours, (B, 3, H, W) in [-1, 1]."""
    import matplotlib

    scaled = ((values - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    colours = matplotlib.colormaps[COLOURS](scaled.cpu().numpy())[..., :3]
    return torch.from_numpy(colours).float().movedim(-1, 1) * 2 - 1


def frequency_maps(*batches: Float[Tensor, "b c _ _"]) -> list[Tensor]:
    """Draw the spectra of images or feature maps on one scale, so that batches compare (Fig. 1).

    Args:
        *batches: Batches of one size, such as images and their reconstructions; the scale of each
            image is that of its spectrum in the first batch.

    Returns:
        (B, 3, H, W) in [-1, 1] for each batch.
    """
    values = [amplitudes(batch) for batch in batches]
    low, high = (limit(values[0], dim=(1, 2), keepdim=True) for limit in (torch.amin, torch.amax))
    return [colour(value, low, high) for value in values]


def feature_pictures(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """Draw the mean over channels of feature maps, in grey, each on its own scale."""
    mean = maps.detach().float().mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    grey = (mean - low) / (high - low).clamp_min(1e-6) * 2 - 1
    return grey.expand(-1, 3, -1, -1).cpu()


@torch.no_grad()
def features(
    model: FAVAE, images: Float[Tensor, "b c h w"]
) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "b c h w"]]:
    """Return the activations A_i, the complements C_i, each first to last tap, and what is decoded.

    Args:
        model: In eval mode.
        images: In [-1, 1], of ``model.image_shape``.
    """
    activations = model.encoder.stages(model.prepare(images))
    z = model.token_space.to_vectors(activations[-1])
    z_q = model.quantizer.lookup(model.quantizer.encode(z)).to(z.dtype)
    reconstruction, complements = model.decoder.decode(model.token_space.to_latents(z_q))
    return list(activations), list(complements), reconstruction


@torch.no_grad()
def inside(model: FAVAE, images: Float[Tensor, "b c h w"]) -> Pictures:
    """Draw what Fig. 3 shows of a model: activations A_i, complements C_i, and the spectra of both.

    Args:
        model: In eval mode.
        images: In [-1, 1], of ``model.image_shape``.

    Returns:
        ``images``, ``reconstruction``, and for each of the four taps ``activation_i`` and
        ``complement_i``; each name with ``_spectrum`` after it is the spectrum of that picture. All
        have the size of the images.
    """
    activations, complements, reconstruction = features(model, images)
    pictures = _pair("images", images, "reconstruction", reconstruction)
    pictures["images"], pictures["reconstruction"] = _in_colour(images), _in_colour(reconstruction)
    for i, (activation, complement) in enumerate(zip(activations, complements), start=1):
        pictures |= _pair(f"activation_{i}", activation, f"complement_{i}", complement)
    size = images.shape[-2:]
    return {name: F.interpolate(picture, size) for name, picture in pictures.items()}


def _pair(first: str, one: Tensor, second: str, other: Tensor) -> Pictures:
    spectra = frequency_maps(one, other)
    return {
        first: feature_pictures(one),
        f"{first}_spectrum": spectra[0],
        second: feature_pictures(other),
        f"{second}_spectrum": spectra[1],
    }


def _in_colour(images: Tensor) -> Tensor:
    return images.float().clamp(-1, 1).expand(-1, 3, -1, -1).cpu()
