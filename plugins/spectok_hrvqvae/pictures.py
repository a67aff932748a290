"""What the levels of a tree hold: reconstructions from some of them (Fig. 1 and 8), node use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import ImageTokenizer, InputError
from spectok.quantizers import USED_SHARE, perplexity
from spectok_hrvqvae.codebooks import CodebookTree
from spectok_hrvqvae.model import HRVQVAE
from spectok_hrvqvae.tree import nodes_of


@dataclass(frozen=True)
class LevelUse:
    """How the nodes of one level of a tree are used.

    Args:
        num_nodes: Nodes of the level.
        num_live: Nodes that more vectors reach than a tenth of the uniform share.
        perplexity: How many are in effective use.
    """

    num_nodes: int
    num_live: int
    perplexity: float


@torch.no_grad()
def level_pictures(model: HRVQVAE, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c h w"]:
    """Reconstruct from all levels, from all but the first, …, from the last alone (Fig. 1).

    Args:
        model: In eval mode, with a tree of n levels.
        images: In [-1, 1], of ``model.image_shape``.

    Returns:
        Each image, then its n reconstructions.
    """
    indices, depth = model.encode(images), len(tree_of(model).branching)
    decoded = [model.decode_levels(indices, range(first, depth)) for first in range(depth)]
    return torch.stack([images, *decoded], dim=1)


@torch.no_grad()
def level_use(model: ImageTokenizer, indices: Int[Tensor, "b t"]) -> list[LevelUse]:
    """Count the live nodes of each level, from root to leaves.

    Args:
        model: Any tokenizer with a tree.
        indices: Tokens of enough images for ten vectors per leaf or more.
    """
    tree = tree_of(model)
    model.token_spec.validate(indices)
    paths = tree.paths(model._from_sequence(indices))
    use = []
    for node in nodes_of(paths, tree.branching):
        num_nodes = tree.branching[0] if not use else use[-1].num_nodes * tree.branching[len(use)]
        counts = torch.bincount(node.flatten(), minlength=num_nodes).float()
        live = counts * num_nodes > USED_SHARE * counts.sum()
        use.append(LevelUse(num_nodes, int(live.sum()), perplexity(counts).item()))
    return use


def tree_of(model: ImageTokenizer) -> CodebookTree:
    """Return a tokenizer's tree of codebooks.

    Raises:
        InputError: If its quantizer is not a tree.
    """
    if not isinstance(model.quantizer, CodebookTree):
        raise InputError(
            f"a {type(model.quantizer).__name__} is not a tree; choose a tokenizer whose quantizer "
            f"is 'tree'"
        )
    return model.quantizer
