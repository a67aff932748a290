"""Quantizers of the library vector-quantize-pytorch, adapted to spectok's contract."""
