"""Tokenizers whose weights diffusers and transformers save."""
