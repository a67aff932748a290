"""The text half of an open_clip model: prompts to a vector for each of their tokens."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spectok.errors import ConfigError, InputError
from spectok_generation.conditions import TextFeatures

BATCH_SIZE = 64


class TextEncoder(nn.Module):
    """Encodes prompts as CAT reads them: every token, not only the end-of-text token.

        prompts              strings
          | tokenizer        of the model; longer prompts are cut off, with a warning
        tokens (B,L)
          | text tower       without its pooling
          | ln_final
          | text_projection  as for the pooled token; not normalised
        features (B,L,D), mask (B,L) up to the end-of-text token

    Args:
        model: An open_clip model; its image half is dropped.
        tokenizer: What goes with it.
        name: Its folder, or its name in open_clip.
        pretrained: With a name: the tag or file of its weights.

    Attributes:
        context_length: Most tokens of a prompt, begin and end of text included.
        width: Length D of the vectors.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, pretrained: str | None = None):
        super().__init__()
        tower: Any = getattr(model, "text", model)
        if not hasattr(tower, "ln_final"):  # a tower from transformers
            raise ConfigError(
                f"the text tower of {name} is a {type(tower).__name__}, whose tokens cannot be "
                f"read; choose a model with open_clip's own text transformer, such as ViT-L-14"
            )
        if hasattr(model, "visual"):
            del model.visual
        self.model = model.eval().requires_grad_(False).float()
        self.tokenizer, self.name, self.pretrained = tokenizer, name, pretrained
        self.context_length: int = tower.context_length
        self.projection: nn.Module | Tensor | None = tower.text_projection
        self.width: int = tower.token_embedding.embedding_dim
        if self.projection is not None:
            self.width = self._project(torch.zeros(1, 1, self.width)).shape[2]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def record(self) -> dict[str, Any]:
        """What a prior and a cache remember of this encoder."""
        return {
            "fingerprint": self.fingerprint,
            "class": "text encoder",
            "path": self.name,
            "pretrained": self.pretrained,
            "width": self.width,
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of every weight and of the tokenizer."""
        digest = hashlib.sha256(f"{type(self.tokenizer).__name__} {self.context_length}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts.

        Returns:
            float32 features on the encoder's device, as long as the longest prompt.

        Raises:
            InputError: If a prompt is empty.
        """
        tokens, mask = self.tokenize(prompts)
        parts = [self._features(part.to(self.device)) for part in tokens.split(BATCH_SIZE)]
        return TextFeatures(torch.cat(parts), mask.to(self.device)).trim()

    def tokenize(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return the tokens of prompts, and where there are any.

        Raises:
            InputError: If a prompt is empty, or there is none.
        """
        if not prompts or any(not prompt.strip() for prompt in prompts):
            raise InputError("the prompt is empty; say in a few words what the image shows")
        tokens, mask = self._tokenize(list(prompts), self.context_length)
        full = [prompt for prompt, whole in zip(prompts, mask.all(1).tolist()) if whole]
        if full:
            lengths = self._tokenize(full, 16 * self.context_length)[1].sum(1).tolist()
            for prompt, length in zip(full, lengths):
                if length > self.context_length:
                    warnings.warn(
                        f"a prompt of {length} tokens is cut off after {self.context_length}, all "
                        f"that {self.name} reads: {prompt[:60]}…",
                        stacklevel=2,
                    )
        return tokens, mask

    def _tokenize(self, prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(prompts, context_length=length)  # (b, l)
        places = torch.arange(length)
        end = getattr(self.tokenizer, "eot_token_id", None)
        if end is None:  # a tokenizer from transformers: padded with a token of its own
            return tokens, tokens != self.tokenizer.tokenizer.pad_token_id
        return tokens, places <= (tokens == end).int().argmax(1, keepdim=True)

    def _features(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        hidden: Any = self.model.forward_intermediates(  # type: ignore[operator]
            text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return self._project(hidden["text_intermediates"][-1])

    def _project(self, hidden: Tensor) -> Tensor:
        if isinstance(self.projection, nn.Module):
            return self.projection(hidden)
        return hidden if self.projection is None else hidden @ self.projection
