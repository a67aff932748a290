"""The graph convolutional module that corrects quantised features (FQ-VAE, Eq. 12)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Gate = Literal["double_sigmoid", "sigmoid"]


class GraphGate(nn.Module):
    """One factor per feature map, from all maps together: ``f' = W f (A B + C)``.

        energy (B, U)     size of each quantised map, one number per graph node
          | embed         W: 1x1 convolution
          | A B + C       A: the identity; B: diagonal, softmax over nodes of a 1-tap convolution;
          |               C: learned adjacency, started near zero
          | expand        W: 1-tap convolution, ReLU, 1x1 convolution
        gate (B, U)       1 at the start, so that training begins without a correction

    A stays the identity, as in AGCA (Xiang et al. 2023), on which the paper builds.

    Args:
        num_nodes: Graph nodes U.
        gate: ``"double_sigmoid"``: 2 sigmoid, in (0, 2) and 1 at the start. ``"sigmoid"``: as in
            AGCA, in (0, 1) and 1/2 at the start.
    """

    def __init__(self, num_nodes: int, gate: Gate = "double_sigmoid"):
        super().__init__()
        self.scale = 2.0 if gate == "double_sigmoid" else 1.0
        self.embed = nn.Linear(num_nodes, num_nodes, bias=False)
        self.node_tap = nn.Parameter(torch.ones(()))
        self.adjacency = nn.Parameter(torch.full((num_nodes, num_nodes), 1e-6))
        self.graph_tap = nn.Parameter(torch.ones(()))
        self.expand = nn.Linear(num_nodes, num_nodes, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, energy: Float[Tensor, "b u"]) -> Float[Tensor, "b u"]:
        """Return the gates for the sizes of an image's quantised maps."""
        nodes = self.embed(energy.to(self.embed.weight.dtype))
        diagonal = torch.softmax(self.node_tap * nodes, dim=-1)  # B of Eq. 12
        mixed = nodes * diagonal + nodes @ self.adjacency  # f (A B + C) with A = I
        gates = self.scale * torch.sigmoid(self.expand(torch.relu(self.graph_tap * mixed)))
        return gates.to(energy.dtype)
