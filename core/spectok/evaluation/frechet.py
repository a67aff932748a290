"""The Fréchet distance between two sets of feature vectors, each treated as a Gaussian.

    |m₁ - m₂|² + tr S₁ + tr S₂ - 2 tr (S₁^½ S₂ S₁^½)^½

Dowson and Landau 1982. Heusel et al. 2017, Eq. 6, use it on features of Inception and call it FID;
in the features of any other network it is a different number and needs a different name.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectok.errors import InputError
from spectok.evaluation.vectors import check_lengths, check_vectors


class Moments:
    """Mean and covariance of feature vectors that come in batches, in float64 on the CPU.

    Batches are merged as in Chan et al. 1983: no precision is lost to large sums, and how vectors
    are split into batches affects only the last digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - m)(x - m)^T

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Add vectors.

        Raises:
            InputError: If they are not (N, D), not as long as earlier ones, or not finite.
        """
        features = features.detach().to("cpu", torch.float64)
        check_vectors(features, self.dim if self.count else None)
        if not len(features):
            return
        mean, total = features.mean(0), self.count + len(features)
        centred = features - mean
        before = self._mean if self.count else mean
        step = mean - before
        scatter = centred.T @ centred + step.outer(step) * (self.count * len(features) / total)
        self._scatter = self._scatter + scatter if self.count else scatter
        self._mean = before + step * (len(features) / total)
        self.count = total

    @property
    def dim(self) -> int:
        """Length D of a vector; 0 before the first."""
        return len(self._mean)

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """Mean vector."""
        return self._mean

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased covariance.

        Raises:
            InputError: If there are fewer than two vectors.
        """
        if self.count < 2:
            raise InputError(f"{self.count} feature vectors have no covariance; give at least two")
        return self._scatter / (self.count - 1)


def frechet_distance(
    features_a: Float[Tensor, "n d"] | Moments, features_b: Float[Tensor, "m d"] | Moments
) -> float:
    """Return the Fréchet distance between two sets of feature vectors; 0 for equal moments.

    The trace of the matrix root is the sum of the roots of a symmetric matrix's eigenvalues, which
    stays real and accurate where a general matrix root does not.

    Args:
        features_a: One vector per image, or their moments.
        features_b: The other set.

    Raises:
        InputError: If either set has fewer than two vectors, they are not finite, or their lengths
            differ.
    """
    a, b = _moments(features_a), _moments(features_b)
    check_lengths(a.dim, b.dim)
    root = _symmetric_root(a.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ b.covariance @ root)
    trace_of_root = eigenvalues.clamp_min(0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    distance = means + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return max(0.0, float(distance))  # rounding may take equal moments just below


def _moments(features: Tensor | Moments) -> Moments:
    if isinstance(features, Moments):
        return features
    moments = Moments()
    moments.add(features)
    return moments


def _symmetric_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
