"""Priors: models of ``p(indices)`` for any ``TokenSpec``."""

from spectok_generation.priors.base import AutoregressivePrior, Prior, PriorOutput
from spectok_generation.priors.gpt import GPT
from spectok_generation.priors.loading import create_prior, load_prior

__all__ = ["GPT", "AutoregressivePrior", "Prior", "PriorOutput", "create_prior", "load_prior"]
