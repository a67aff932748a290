"""Network blocks and token spaces that several tokenizers share."""

from spectok.nn.conv import ConvDecoder, ConvEncoder
from spectok.nn.discriminators import PatchGAN
from spectok.nn.token_spaces import GridTokens, ListTokens
from spectok.nn.vqgan import VQGANDecoder, VQGANEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "GridTokens",
    "ListTokens",
    "PatchGAN",
    "VQGANDecoder",
    "VQGANEncoder",
]
