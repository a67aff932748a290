"""RQ-VAE and HQ-VAE: several codes for one place, each for what those before it left."""
