"""Latent diffusion: a model of a tokenizer's continuous latents, and its sampler."""

from spectok_generation.diffusion.model import LDM
from spectok_generation.diffusion.sampling import DiffusionOptions, sample_latents

__all__ = ["LDM", "DiffusionOptions", "sample_latents"]
