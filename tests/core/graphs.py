"""Trace tokenizers in an interpreter of its own: graphs cannot enter the checks of shapes.

The settings of the tests wrap every function that has shapes in its signature, which
``torch.compile`` cannot look through. Prints one line of JSON: tokenizer -> what went wrong.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from spectok.testing.small import small_tokenizer


class Encode(nn.Module):
    """What ``torch.export`` takes: a module whose forward is a tokenizer's ``encode``."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images):
        return self.tokenizer.encode(images)


class Decode(Encode):
    """A module whose forward is a tokenizer's ``decode``."""

    def forward(self, indices):
        return self.tokenizer.decode(indices)


def trace(name: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    tokenizer = small_tokenizer(name).eval()
    images = torch.rand(2, *tokenizer.image_shape) * 2 - 1
    whole = {"fullgraph": True, "backend": "eager"}
    compiled = torch.compile(tokenizer.encode, **whole)(images)
    assert "token_spec" not in vars(tokenizer), "the graph changed what it reads"
    indices = tokenizer.encode(images)
    assert torch.equal(compiled, indices), "the compiled encode gives other tokens"
    decoded = torch.compile(tokenizer.decode, **whole)(indices)
    assert torch.equal(decoded, tokenizer.decode(indices)), "the compiled decode differs"
    for kind, given in [(Encode, images), (Decode, indices)]:
        exported = torch.export.export(kind(tokenizer).eval(), (given,)).module()
        same = torch.equal(exported(given), kind(tokenizer)(given))
        assert same, f"the exported {kind.__name__} differs"


if __name__ == "__main__":
    torch.set_num_threads(1)
    wrong = {}
    with torch.no_grad():
        for name in sys.argv[1:]:
            try:
                trace(name)
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                wrong[name] = f"{type(error).__name__}: {' '.join(lines)[:500]}"
    print(json.dumps(wrong))
