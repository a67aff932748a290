"""A tree of codebooks: storage, descent, losses and lookup; its upkeep is in ``quantizer.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.quantizers import (
    CodeCounts,
    Quantizer,
    QuantizerLevel,
    QuantizerOutput,
    StepCounter,
    codebook_losses,
    perplexity,
    straight_through,
)
from spectok_hrvqvae.tree import descend, nodes_of, partial_sums, path_of


class CodebookTree(Quantizer):
    """Hierarchical residual quantisation (Eq. 3 to 6); a subclass keeps its codes alive.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        branching: Children per level; they multiply to the number of leaves.
        tokens: ``"path"``: one index per level; ``"leaf"``: only the number of the leaf.
        codebook_weight: Weight of the terms that move the codes.
        commitment_weight: Weight of the terms that move the encoder.
        learned: Whether the codes are parameters, trained by gradient, or buffers.
    """

    decodes_first_levels = True
    frequency: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        branching: Sequence[int],
        tokens: Literal["path", "leaf"],
        codebook_weight: float,
        commitment_weight: float,
        learned: bool,
    ):
        self.branching = tuple(branching)
        leaves = int(torch.Size(self.branching).numel())
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=leaves)
        self.step_counter = StepCounter(self, seed=0x7EE5)
        self.code_counts = CodeCounts(self, (leaves,))
        self.tokens, self.is_learned = tokens, learned
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        num_nodes = 1
        for level, m in enumerate(self.branching):
            num_nodes *= m
            codes = torch.randn(num_nodes, dim) / 2**level  # residuals shrink
            if learned:
                self.register_parameter(f"codes_{level}", nn.Parameter(codes))
            else:
                self.register_buffer(f"codes_{level}", codes)
        self._tables: tuple[Any, list[Tensor]] = (None, [])

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """One level per level of the tree, or a single one of all leaves."""
        if self.tokens == "leaf":
            return (QuantizerLevel(self.codebook_size),)
        first, *rest = self.branching
        return (QuantizerLevel(first), *(QuantizerLevel(m, "path") for m in rest))

    @property
    def codebooks(self) -> list[Tensor]:
        """The codes of each level, ``(nodes, D)``; child k of node p is row p * m + k."""
        return [getattr(self, f"codes_{level}") for level in range(len(self.branching))]

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The children of each node, level by level; with leaf tokens, the sums on all paths."""
        if self.tokens == "leaf":
            return (self.tables()[len(self.branching)][None],)
        return tuple(
            codes.unflatten(0, (-1, m)) for codes, m in zip(self.codebooks, self.branching)
        )

    # -- quantising ------------------------------------------------------------------------------

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Descend the tree and compare; see :class:`~spectok.Quantizer`."""
        vectors = z.detach().flatten(0, 1)
        path, leaf = descend(vectors, self.codebooks, self.branching)
        path, metrics = path.view(*z.shape[:2], -1), self.usage()
        codes = self.level_codes(path)
        residual, terms = z, []
        for level, code in enumerate(codes):
            terms.append(self._compare(residual, code))
            residual = residual - code.detach()
            metrics[f"residual_level{level}"] = residual.detach().square().mean()
        z_q = _sum(codes)
        terms.append(self._compare(z, z_q))
        losses = {name: _sum([term[name] for term in terms]) for name in terms[0]}
        if self.training:
            self.observe(vectors, leaf)
        indices = path if self.tokens == "path" else leaf.view(*z.shape[:2], 1)
        return QuantizerOutput(straight_through(z, z_q), indices, losses, metrics)

    def observe(self, z: Float[Tensor, "p d"], leaf: Int[Tensor, "p"]) -> None:
        """Gather statistics of one micro-batch in training, from vectors and the leaves reached."""

    def _compare(self, z: Tensor, codes: Tensor) -> dict[str, Tensor]:
        return codebook_losses(
            z, codes, codebook_weight=self.codebook_weight, commitment_weight=self.commitment_weight
        )

    def level_codes(self, path: Int[Tensor, "b n l"]) -> list[Float[Tensor, "b n d"]]:
        """Return what each of the first l levels contributes to the sum."""
        nodes = nodes_of(path, self.branching)
        return [F.embedding(node, codes) for node, codes in zip(nodes, self.codebooks)]

    def paths(self, indices: Int[Tensor, "b n l"]) -> Int[Tensor, "b n p"]:
        """Return one index per level of the tree, whatever :attr:`levels` declares."""
        return indices if self.tokens == "path" else path_of(indices.squeeze(-1), self.branching)

    def lookup(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the sum of the codes on each path, or on its first l levels.

        Without gradient, this is one lookup in a table of all nodes.
        """
        path = self.paths(indices)
        if torch.is_grad_enabled():
            return _sum(self.level_codes(path))
        return F.embedding(nodes_of(path, self.branching)[-1], self.tables()[path.shape[-1]])

    @torch.no_grad()
    def tables(self) -> list[Float[Tensor, "_ d"]]:
        """Return the sums from the root to each node after l levels; kept until a code changes."""
        codebooks = self.codebooks
        root = codebooks[0].new_zeros(1, self.dim)
        # a graph keeps nothing, and codes made in inference mode have no version counter
        if torch.compiler.is_compiling() or any(codes.is_inference() for codes in codebooks):
            return partial_sums(root, codebooks, self.branching)
        state = [(codes._version, codes.data_ptr(), codes.dtype) for codes in codebooks]
        if self._tables[0] != state:
            self._tables = (state, partial_sums(root, codebooks, self.branching))
        return self._tables[1]

    # -- statistics ------------------------------------------------------------------------------

    @torch.no_grad()
    def usage(self) -> dict[str, Tensor]:
        """Return the metrics of the running frequencies.

        ``perplexity`` and ``codebook_usage`` are those of the leaves, ``perplexity_level…`` is that
        of the nodes of one level above them.
        """
        metrics = self.code_counts.usage()
        for level in range(len(self.branching) - 1):
            nodes = self.by_node(self.frequency, level).sum(1)
            metrics[f"perplexity_level{level}"] = perplexity(nodes)
        return metrics

    def by_node(self, values: Tensor, level: int) -> Tensor:
        """View a tensor of one row per descendant as (nodes of a level, descendants of each, …)."""
        num_nodes = int(torch.Size(self.branching[: level + 1]).numel())
        return values.view(num_nodes, -1, *values.shape[1:])


def _sum(tensors: list[Tensor]) -> Tensor:
    """Add in order, as :func:`~spectok_hrvqvae.tree.partial_sums` does: equal bit for bit."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
