"""Network blocks and token spaces that several tokenizers share."""

from spectok.nn.conv import ConvDecoder, ConvEncoder
from spectok.nn.token_spaces import GridTokens, ListTokens

__all__ = ["ConvDecoder", "ConvEncoder", "GridTokens", "ListTokens"]
