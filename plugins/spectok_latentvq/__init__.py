"""Any quantizer in the latent space of a pretrained autoencoder of diffusers."""
