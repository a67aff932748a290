"""VQ-VAE and the two classic ways to learn its codebook."""
