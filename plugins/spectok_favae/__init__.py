"""FA-VAE: a VQGAN whose decoder learns to give back the frequencies that compression loses."""
