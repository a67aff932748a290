"""The text half of an open_clip model: a prompt becomes one vector per token."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.saving import saving
from spectok_generation.conditions import TextFeatures
from spectok_generation.text.vocabulary import Vocabulary

BATCH_SIZE = 64
CONFIG, TEXT_WEIGHTS = "open_clip_config.json", "open_clip_text.safetensors"
WEIGHTS = "open_clip_model.safetensors"
CLIP_FILES = r"open_clip_(model|text)\.safetensors"
"""The names of weights, of which a folder holds one."""
TEXT_HALF, VOCABULARY = "text_half", "vocabulary"
"""Config keys with the name of open_clip's class, if only the text half was saved, and with the
numbers of the tokens that it keeps, if not all."""


class TextEncoder(nn.Module):
    """Encode prompts as CAT reads them: every token, not only the end-of-text token.

        prompts              strings
          | tokenizer        of the model; prompts too long are cut off, with a warning
        tokens (B,L)
          | text tower       without its pooling
          | ln_final
          | text_projection  as for the pooled token; not normalised
        features (B,L,D), mask (B,L) up to the end-of-text token

    Args:
        model: An open_clip model; its image half is dropped.
        tokenizer: The tokenizer of the model.
        name: Folder of the model, or its name in open_clip.
        pretrained: With a name: tag or file of the weights.
        config: The config that open_clip built the model from; :meth:`save_pretrained` needs it.
        vocabulary: Which of the tokenizer's tokens have a vector. None: all; see
            :meth:`restricted_to`.

    Attributes:
        context_length: Maximum number of tokens of a prompt, including begin and end of text.
        width: Length D of the vectors.
        pools_last_token: Whether the model pools at the last token of a text, so that its vector,
            the last of the features, is the pooled one.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
    ):
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
        self.model_config, self.vocabulary = config, vocabulary
        self.context_length: int = tower.context_length
        self.projection: nn.Module | Tensor | None = tower.text_projection
        pooling = getattr(tower, "pool_type", None) or getattr(model, "text_pool_type", None)
        self.pools_last_token = (
            pooling in ("argmax", "eos") and getattr(tower, "cls_emb", None) is None
        )
        self.width: int = tower.token_embedding.embedding_dim
        if self.projection is not None:
            self.width = self._project(torch.zeros(1, 1, self.width)).shape[2]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def record(self) -> dict[str, Any]:
        """What priors and caches store about this encoder."""
        return {
            "fingerprint": self.fingerprint,
            "class": "text encoder",
            "path": self.name,
            "pretrained": self.pretrained,
            "width": self.width,
            "pools_last_token": self.pools_last_token,
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of every weight and of the tokenizer."""
        digest = hashlib.sha256(f"{type(self.tokenizer).__name__} {self.context_length}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if self.vocabulary is not None:
            digest.update(f"{self.vocabulary.ids}".encode())
        return digest.hexdigest()

    def restricted_to(self, captions: Sequence[str]) -> TextEncoder:
        """Return a copy that keeps the vectors of these captions' tokens alone.

        Its features of texts in the same words are the same numbers, and it refuses other words. An
        encoder of some dozens of words has a hundredth of the weights.

        Args:
            captions: Texts with all the words it is to know.

        Raises:
            CheckpointError: If the encoder could not be saved, or is restricted already.
        """
        self._check_can_save()
        if self.vocabulary is not None:
            raise CheckpointError(f"the text encoder {self.name} is restricted already")
        longer = 2 * self.context_length  # so that padding occurs too
        kept = Vocabulary.of(self._tokenize(list(captions), longer)[0])
        model: Any = copy.deepcopy(self.model)
        tower = getattr(model, "text", model)
        rows = torch.tensor(kept.ids, device=self.device)
        tower.token_embedding = nn.Embedding.from_pretrained(tower.token_embedding.weight[rows])
        tower.vocab_size = len(kept.ids)
        config: dict[str, Any] = copy.deepcopy(self.model_config or {})
        config["text_cfg"]["vocab_size"] = len(kept.ids)
        return TextEncoder(model, self.tokenizer, self.name, self.pretrained, config, kept)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts.

        Returns:
            float32 features on the device of the encoder, as long as the longest prompt.

        Raises:
            InputError: If a prompt is empty.
        """
        tokens, mask = self.tokenize(prompts)
        parts = [self._features(part.to(self.device)) for part in tokens.split(BATCH_SIZE)]
        return TextFeatures(torch.cat(parts), mask.to(self.device)).trim()

    def tokenize(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return the tokens of prompts, and a mask of the places that hold tokens.

        Raises:
            InputError: If a prompt is empty, or no prompt is given.
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
                        f"a prompt of {length} tokens is cut off after {self.context_length}, the "
                        f"most that {self.name} reads: {prompt[:60]}…",
                        stacklevel=2,
                    )
        if self.vocabulary is not None:
            tokens = self.vocabulary.rows(tokens, prompts, self._decode)
        return tokens, mask

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Save config, weights and tokenizer for ``load_text_encoder``: all of it, or nothing.

        Raises:
            CheckpointError: If it could not be rebuilt from files, or writing fails.
        """
        self._check_can_save()
        content: dict[str, Any] = {"model_cfg": self.model_config}
        content[TEXT_HALF] = type(self.model).__name__
        if self.vocabulary is not None:
            content[VOCABULARY] = list(self.vocabulary.ids)
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        with saving(save_directory, CONFIG, CLIP_FILES) as temporary:
            save_file(state, temporary / TEXT_WEIGHTS)
            (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            if hasattr(
                self.tokenizer, "save_pretrained"
            ):  # a tokenizer from transformers is saved as files
                self.tokenizer.save_pretrained(temporary)

    def _check_can_save(self) -> None:
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        if self.model_config is None:
            raise CheckpointError(
                f"the text encoder {self.name} was built from a model whose config is unknown, so "
                f"it could not be rebuilt; load it with load_text_encoder"
            )
        if not isinstance(self.tokenizer, SimpleTokenizer | HFTokenizer):
            raise CheckpointError(
                f"the text encoder {self.name} has a {type(self.tokenizer).__name__}, which cannot "
                f"be rebuilt from files; choose a model with another tokenizer"
            )
        if self.dtype != torch.float32:
            raise CheckpointError(
                f"the text encoder {self.name} was cast to {self.dtype}, but priors identify it "
                f"by its float32 weights; load it again and save that"
            )

    def _tokenize(self, prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(prompts, context_length=length)  # (b, l)
        places = torch.arange(length)
        end = getattr(self.tokenizer, "eot_token_id", None)
        if end is None:  # a tokenizer from transformers, which pads with a special token
            return tokens, tokens != self.tokenizer.tokenizer.pad_token_id
        return tokens, places <= (tokens == end).int().argmax(1, keepdim=True)

    def _decode(self, token: int) -> str:
        """Return the text of one token."""
        return getattr(self.tokenizer, "tokenizer", self.tokenizer).decode([token])

    def _features(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        hidden: Any = self.model.forward_intermediates(  # type: ignore[operator]
            text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return self._project(hidden["text_intermediates"][-1])

    def _project(self, hidden: Tensor) -> Tensor:
        if isinstance(self.projection, nn.Module):
            return self.projection(hidden)
        return hidden if self.projection is None else hidden @ self.projection
