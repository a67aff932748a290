"""Quantizers: vectors in, indices and vectors out. All that the author of one imports is here.

A quantizer maps the vectors z ``(B, N, D)`` of a batch, N per image, to int64 indices
``(B, N, L)``, one for each of its L levels, and to the vectors z_q ``(B, N, D)`` that the indices
stand for. Every tokenizer quantises such vectors, so any quantizer runs in any tokenizer. A
complete one, which rounds each number to one of K integers::

    import torch
    from spectok.quantizers import Quantizer, QuantizerLevel, QuantizerOutput, straight_through


    class RoundingQuantizer(Quantizer):
        @property
        def levels(self):  # what it contributes to the TokenSpec: here one level per dimension
            return (QuantizerLevel(vocab_size=self.codebook_size),) * self.dim

        def quantize(self, z):  # float32, outside autocast
            indices = z.detach().round().clamp(0, self.codebook_size - 1).long()
            return QuantizerOutput(straight_through(z, self.lookup(indices)), indices)

        def lookup(self, indices):  # exactly the z_q of quantize
            return indices.float()


    quantizer = RoundingQuantizer(dim=2, num_tokens=16, codebook_size=8)
    output = quantizer(torch.randn(4, 16, 2))
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)

``docs/plugins.md`` says how to register it under a name, and ``spectok.testing`` checks it.

The contract
    :class:`Quantizer` is the base class; :class:`QuantizerLevel` and :class:`QuantizerOutput` are
    what it declares and returns. :data:`QuantizerOption` annotates a constructor argument that
    names another registered quantizer. :func:`outermost_quantizers` finds those of a model.

Explicit codebooks
    :class:`CodebookQuantizer` has G codebooks of K codes, the exact search and the metrics; a
    subclass decides how the codes learn. :class:`RunningQuantizer` goes on from there: codes that
    follow the vectors that choose them, and are revived where nothing does.

Statistics
    Objects that a quantizer holds, for what it keeps track of: :class:`StepCounter` (optimiser
    steps), :class:`CodeCounts` (how often codes are chosen, and the metrics of that) and
    :class:`RunningMeans`. :func:`perplexity` says how many codes are in effective use, and
    :func:`count_rows` counts indices without waiting for a GPU.
    The constants are :data:`FREQUENCY_DECAY` of the running frequencies, :data:`USED_SHARE` of the
    uniform share above which a code counts as used, and :data:`FEWEST_MEMBERS`, the running count
    below which a code has no mean.

Search
    :func:`nearest_codes` is exact, and holds at most :data:`DISTANCE_BYTES` of distances. Scores
    that a gradient goes through are held in blocks of :data:`BLOCK_BYTES`.

Losses
    :func:`straight_through` and :func:`codebook_losses`, both of VQ-VAE.

Codes edited outside autograd
    Such an edit must be the same on every process: :func:`sum_over_ranks` sums statistics,
    :func:`gather_candidates` draws vectors, :func:`broadcast_from_main` sends what rank 0 has,
    :func:`draw_per_sample` draws a number per image, and :func:`world` says how many processes
    there are. :func:`clear_moments` clears an optimiser's memory of replaced codes.
"""

from spectok.distributed import (
    broadcast_from_main,
    clear_moments,
    draw_per_sample,
    gather_candidates,
    sum_over_ranks,
    world,
)
from spectok.outputs import QuantizerOutput
from spectok.quantizers.codebook import CodebookQuantizer
from spectok.quantizers.contract import Quantizer, QuantizerLevel, outermost_quantizers
from spectok.quantizers.losses import codebook_losses, straight_through
from spectok.quantizers.running import RunningQuantizer
from spectok.quantizers.search import BLOCK_BYTES, DISTANCE_BYTES, nearest_codes
from spectok.quantizers.statistics import (
    FEWEST_MEMBERS,
    FREQUENCY_DECAY,
    USED_SHARE,
    CodeCounts,
    RunningMeans,
    StepCounter,
    count_rows,
    perplexity,
)
from spectok.recipes.schema import QuantizerOption

__all__ = [
    "BLOCK_BYTES",
    "DISTANCE_BYTES",
    "FEWEST_MEMBERS",
    "FREQUENCY_DECAY",
    "USED_SHARE",
    "CodeCounts",
    "CodebookQuantizer",
    "Quantizer",
    "QuantizerLevel",
    "QuantizerOption",
    "QuantizerOutput",
    "RunningMeans",
    "RunningQuantizer",
    "StepCounter",
    "broadcast_from_main",
    "clear_moments",
    "codebook_losses",
    "count_rows",
    "draw_per_sample",
    "gather_candidates",
    "nearest_codes",
    "outermost_quantizers",
    "perplexity",
    "straight_through",
    "sum_over_ranks",
    "world",
]
