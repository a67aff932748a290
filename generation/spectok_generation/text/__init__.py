"""Text: encoders from open_clip, the features of a data set's captions, and a CLIP of one's own."""

from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.features import CaptionFeatures, encode_captions
from spectok_generation.text.loading import load_text_encoder

__all__ = ["CaptionFeatures", "TextEncoder", "encode_captions", "load_text_encoder"]
