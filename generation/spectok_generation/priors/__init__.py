"""Priors: models of ``p(indices)`` for any ``TokenSpec``."""

from spectok_generation.priors.base import AutoregressivePrior, Prior, PriorOutput
from spectok_generation.priors.factory import create_prior, load_prior
from spectok_generation.priors.gpt import GPT

__all__ = ["GPT", "AutoregressivePrior", "Prior", "PriorOutput", "create_prior", "load_prior"]
