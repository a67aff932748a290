"""FQ-VAE: quantised frequency maps of the whole image (Feng & Liu 2025)."""
