"""HR-VQVAE: a tree of codebooks, each level coding the residual of the one above (2022)."""
