"""Stochastic quantisation: SQ-VAE, and the relaxed categorical codes of DALL-E's dVAE."""
