"""The quantizer contract: vectors ``(B, N, D)`` in, indices ``(B, N, L)`` and vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.device import exact_products
from spectok.errors import InputError, PluginError
from spectok.outputs import QuantizerOutput
from spectok.sizes import scaled
from spectok.token_spec import CodebookKind, Level


@dataclass(frozen=True)
class QuantizerLevel:
    """What one level of a quantizer contributes to the ``TokenSpec``.

    Args:
        vocab_size: Values an index of this level can take.
        codebook: ``"shared"``, ``"position"`` or ``"path"``; see :class:`~spectok.Level`.
        num_codebooks: Codebooks of a ``"position"`` level.
    """

    vocab_size: int
    codebook: CodebookKind = "shared"
    num_codebooks: int = 1

    def at(self, shape: Sequence[int]) -> Level:
        """Return this level laid out on a token shape."""
        return Level(tuple(shape), self.vocab_size, self.codebook, self.num_codebooks)


class Quantizer(nn.Module, ABC):
    """Base class: maps each of N vectors to a code, at one or more levels.

    A subclass's constructor takes ``dim``, ``num_tokens`` and ``codebook_size`` by keyword, then
    its own options; that signature is the schema of the recipe section ``quantizer:``. A subclass
    defines :attr:`levels`, :meth:`quantize` and :meth:`lookup`. Distances, updates and losses run
    in float32: :meth:`forward` leaves autocast before it calls :meth:`quantize`.

    Edits of codes outside autograd happen in :meth:`after_step` alone, once per optimiser step and
    never in eval mode, with the functions that :mod:`spectok.quantizers` has for them.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Number of codes in each codebook.

    Attributes:
        decodes_first_levels: Whether :meth:`lookup` also takes the indices of the first levels
            alone, as residual quantizers can; images then decode level by level.
    """

    decodes_first_levels: bool = False

    def __init__(self, *, dim: int, num_tokens: int, codebook_size: int):
        super().__init__()
        for name, value in [("dim", dim), ("num_tokens", num_tokens)]:
            if value < 1:
                raise InputError(f"{name} {value} must be at least 1")
        if codebook_size < 1:
            raise InputError(f"codebook_size {codebook_size} must be at least 1")
        self.dim, self.num_tokens, self.codebook_size = dim, num_tokens, codebook_size

    @property
    @abstractmethod
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """The levels this quantizer contributes to the ``TokenSpec``, coarse to fine."""

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The codes of each level, as G codebooks of K vectors; None if a level stores no vectors.

        Measurements read them, such as how many codes are twins of each other.
        """
        return (None,) * len(self.levels)

    @abstractmethod
    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Quantise float32 vectors outside autocast; see :meth:`forward`."""

    @abstractmethod
    def lookup(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the vectors that indices stand for: the ``z_q`` of :meth:`forward`."""

    def forward(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Quantise a batch of vectors.

        Args:
            z: Vectors of the declared ``num_tokens`` and ``dim``.

        Returns:
            ``z_q`` float32 with a straight-through gradient, int64 indices, weighted losses.

        Raises:
            InputError: If the shape differs from ``(B, num_tokens, dim)``.
            PluginError: If :meth:`quantize` returns something else.
        """
        if z.ndim != 3 or z.shape[1:] != (self.num_tokens, self.dim):
            raise InputError(
                f"vectors of shape {tuple(z.shape)} are not (B, {self.num_tokens}, {self.dim})"
            )
        with torch.autocast(z.device.type, enabled=False), exact_products():
            output = self.quantize(z.float())
        if not (
            isinstance(output, QuantizerOutput)
            and output.indices.dtype == torch.int64
            and output.indices.ndim == 3
            and output.indices.shape[:2] == z.shape[:2]
            and output.z_q.shape == z.shape
        ):
            raise PluginError(f"{self._described} does not return what Quantizer.forward describes")
        return output

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "b n d"]) -> Int[Tensor, "b n l"]:
        """Return the indices of vectors as in eval mode, leaving training statistics untouched.

        Raises:
            InputError: If a vector is infinite or NaN, which no code is nearest to.
            PluginError: If the codes are not finite, or an index is outside its level.
        """
        checked = not (z.is_meta or torch.compiler.is_compiling())
        if checked and not z.isfinite().all():
            raise InputError(
                "vectors to quantise are infinite or NaN: the network overflows "
                f"{str(z.dtype).removeprefix('torch.')}, or its input does; use float32 or bfloat16"
            )
        training = self.training
        self.eval()
        try:
            output = self(z)
        finally:
            self.train(training)
        if checked:
            self._check_values(output)
        return output.indices

    def _check_values(self, output: QuantizerOutput) -> None:
        if not output.z_q.isfinite().all():
            raise PluginError(f"{self._described} has codes that are not finite; train it again")
        sizes = [level.vocab_size for level in self.levels]
        if (output.indices < 0).any() or (output.indices >= output.indices.new_tensor(sizes)).any():
            raise PluginError(f"{self._described} returns an index outside its levels of {sizes}")

    @property
    def _described(self) -> str:
        """The class, and the module of the plugin that it comes from, for messages."""
        return f"the quantizer {type(self).__name__} of {type(self).__module__}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move as any module does, but stay in float32 where the rest of a model is halved."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            halved = (
                result.dtype in (torch.float16, torch.bfloat16) and result.dtype != tensor.dtype
            )
            return tensor.to(result.device) if halved else result

        return super()._apply(moved, recurse)

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Take another number of vectors per image: called on a copy that shares the codes.

        Args:
            rows: New height of the images / height they had.
            columns: The same of the width.
        """
        self.num_tokens = scaled(self.num_tokens, rows * columns)

    def before_step(self) -> None:
        """Read gradients: called once per optimiser step, synchronised and unscaled, unclipped."""

    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Edit codes: called once after each optimiser step, on every rank."""

    def skip_step(self) -> None:
        """Forget the micro-batches since the last step: called when no optimiser step is taken.

        It replaces :meth:`before_step` and :meth:`after_step`, on every rank, when gradients
        overflow in fp16.
        """


def outermost_quantizers(module: nn.Module) -> list[Quantizer]:
    """Return the quantizers of a model, except those that are parts of another quantizer.

    A quantizer made of others passes ``before_step``, ``after_step`` and ``skip_step`` on to its
    parts itself.
    """
    if isinstance(module, Quantizer):
        return [module]
    return [found for child in module.children() for found in outermost_quantizers(child)]
