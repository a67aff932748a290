"""QG-VAE: global tokens with a codebook each (Elsner et al. 2024)."""
