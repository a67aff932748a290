"""``examine``: look for what is wrong with a trained tokenizer, in its weights and on data."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spectok.cards import CARD, read_claims
from spectok.data import ImageDataset
from spectok.errors import CheckpointError
from spectok.evaluation.codebooks import UsageByPosition
from spectok.evaluation.codes import (
    check_astray,
    check_children,
    check_counts,
    check_frequencies,
    check_norms,
    check_perplexity,
    check_twins,
    running_frequencies,
)
from spectok.evaluation.diagnosis import Diagnosis
from spectok.evaluation.logged import examine_log
from spectok.evaluation.measuring import check_shape
from spectok.evaluation.stored import (
    check_finite,
    check_rounding,
    check_subnormal,
    read_tensors,
)
from spectok.foreign import ForeignTokenizer
from spectok.loading import find_saved, load_trained
from spectok.metrics import count_codes, split_by_codebook
from spectok.modeling import model_fingerprint
from spectok.places import home
from spectok.quantizers import Quantizer, outermost_quantizers
from spectok.recipes.options import SUPPLIED
from spectok.tokenizer import ImageTokenizer

SAMPLED = 1 << 14
"""Vectors of each quantizer that are kept to compare lengths."""
PROBED = 64
"""Codes of each codebook that are quantised themselves."""
NO_DATA = "needs images: give --data"


@dataclass
class Seen:
    """What a quantizer was given and returned.

    Args:
        vectors: Parts of the vectors that it quantised.
        chosen: The codes for them.
    """

    vectors: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)

    def add(self, vectors: Tensor, chosen: Tensor) -> None:
        """Keep vectors as long as there are few."""
        if sum(map(len, self.vectors)) < SAMPLED:
            self.vectors.append(vectors.detach().flatten(0, 1).float().cpu())
            self.chosen.append(chosen.detach().flatten(0, 1).float().cpu())


def examine(
    model: str | os.PathLike[str],
    dataset: ImageDataset | Callable[[ImageTokenizer], ImageDataset] | None = None,
    *,
    subfolder: str | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    on_images: Callable[[int], None] | None = None,
) -> Diagnosis:
    """Look for what is wrong with a trained tokenizer.

    Without images it looks at the weights and at the running frequencies that training kept with
    them; with images also at latents and at how codes are used.

    Args:
        model: Folder of a trained tokenizer or of its run, or a hub id.
        dataset: Images, or a function that returns those for a tokenizer. None: none.
        subfolder: Folder inside it that holds the tokenizer; see :func:`spectok.load_tokenizer`.
        batch_size: Images at once.
        device: Device to run on.
        on_images: Called with the number of images done since the last call.

    Raises:
        CheckpointError: If the model cannot be loaded for another reason than numbers that are not
            finite.
        InputError: If the images do not have the tokenizer's shape.
    """
    found = Diagnosis()
    try:
        tokenizer: Any = load_trained(model, subfolder=subfolder)
    except CheckpointError:
        with contextlib.suppress(CheckpointError):
            tensors = read_tensors(find_saved(model, subfolder).folder)
            found.ran("not finite", check_finite(tensors))
        examine_log(found, Path(home(model)))
        if not found.findings:
            raise
        found.not_checked["everything else"] = "the model cannot be loaded"
        return found
    own = not isinstance(tokenizer, ForeignTokenizer)  # of others, as they were loaded
    folder = find_saved(model, subfolder).folder
    tensors = read_tensors(folder) if own else tokenizer.state_dict()
    examine_weights(found, tokenizer, tensors, measured=is_measured(tokenizer, folder))
    examine_log(found, folder)
    if dataset is None:
        for check in ("perplexity", "constant positions", "norms"):
            found.not_checked[check] = NO_DATA
    else:
        images = dataset(tokenizer) if callable(dataset) else dataset
        examine_usage(found, tokenizer.to(device), images, batch_size, on_images)
    found.leave_out(settings_of(tokenizer))
    return found


def settings_of(tokenizer: ImageTokenizer) -> set[str]:
    """Return the settings of a recipe that help: options that the tokenizer and its quantizer take.

    Revival that is on already is not among them.
    """
    options = tokenizer.first_config()
    found = {f"tokenizer.{name}" for name in options}
    if "quantizer" in options:
        for quantizer in outermost_quantizers(tokenizer):
            names = inspect.signature(type(quantizer)).parameters.keys() - set(
                SUPPLIED["quantizer"]
            )
            found |= {f"tokenizer.quantizer.{name}" for name in names}
            if getattr(quantizer, "revive_below", 0) > 0:
                found.discard("tokenizer.quantizer.revive_below")
    return found


def is_measured(tokenizer: ImageTokenizer, folder: Path) -> bool:
    """Return whether the card in a model's folder has numbers of exactly these weights."""
    try:
        claims, _ = read_claims(folder / CARD)
    except CheckpointError:
        return False
    return model_fingerprint(tokenizer) in {claim.weights for claim in claims}


def examine_weights(
    found: Diagnosis,
    tokenizer: ImageTokenizer,
    tensors: dict[str, Tensor],
    *,
    measured: bool = False,
) -> None:
    """Add what the weights tell.

    Args:
        found: The diagnosis to add to.
        tokenizer: The loaded model.
        tensors: The same as stored.
        measured: Whether its card has numbers of exactly these weights.
    """
    spec, tables = tokenizer.token_spec, tokenizer.code_tables
    found.ran("not finite", check_finite(tensors))
    found.ran("subnormal", check_subnormal(tensors))
    found.ran("half precision", check_rounding(tensors, measured))
    if any(table is not None for table in tables):
        found.ran("twins", check_twins(spec, tables))
        found.ran("norms of codes", check_astray(spec, tables))
    else:
        found.not_checked["twins"] = "this quantizer stores no codes as vectors"
    if any(level.codebook == "path" for level in spec.levels):
        found.ran("tree", check_children(spec, tables))
    if any(True for _ in running_frequencies(tokenizer)):
        found.ran("dead and rare codes in training", check_frequencies(tokenizer))


@torch.no_grad()
def examine_usage(
    found: Diagnosis,
    tokenizer: ImageTokenizer,
    dataset: ImageDataset,
    batch_size: int,
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Add what latents and tokens of images tell.

    Args:
        found: The diagnosis to add to.
        tokenizer: The loaded model.
        dataset: The images.
        batch_size: Images at once.
        on_images: Called with the number of images done since the last call.
    """
    check_shape(tokenizer, dataset)
    spec, nothing = tokenizer.token_spec, torch.zeros(0)
    counts, usage = torch.zeros(spec.num_codes, dtype=torch.int64), UsageByPosition(spec)
    tokenizer.eval()
    with watched(tokenizer) as seen:
        for batch in DataLoader(dataset, batch_size=batch_size):
            images = batch["images"].to(tokenizer.device, tokenizer.dtype)
            indices = tokenizer.encode(images).cpu()
            counts += count_codes(spec, indices)
            usage.add(nothing, nothing, indices)
            if on_images is not None:
                on_images(len(images))
    by_level = split_by_codebook(spec, counts)
    found.ran("dead and rare codes", check_counts(spec, by_level))
    found.ran("perplexity", check_perplexity(spec, by_level, usage.result()))
    if any(level.codebook == "path" for level in spec.levels):
        found.ran("tree in use", check_children(spec, [None] * spec.num_levels, by_level))
    for name, (quantizer, parts) in seen.items():
        table = one_table(quantizer)
        if table is not None and not keeps_codes(quantizer, table):
            found.not_checked["norms"] = f"{name} does not choose the code nearest to a vector"
        elif parts.vectors:
            vectors, chosen = torch.cat(parts.vectors), torch.cat(parts.chosen)
            found.ran("norms", check_norms(name, vectors, chosen, table))


@contextmanager
def watched(tokenizer: ImageTokenizer) -> Iterator[dict[str, tuple[Quantizer, Seen]]]:
    """Keep what each outermost quantizer of a tokenizer is given and returns, by its name."""
    names = {module: name for name, module in tokenizer.named_modules()}
    quantizers = outermost_quantizers(tokenizer)
    seen = {names[quantizer]: (quantizer, Seen()) for quantizer in quantizers}

    def keep(quantizer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        seen[names[quantizer]][1].add(inputs[0], output.z_q)

    handles = [quantizer.register_forward_hook(keep) for quantizer in quantizers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def keeps_codes(quantizer: Quantizer, table: Float[Tensor, "g k d"]) -> bool:
    """Return whether codes are quantised to themselves, as where the nearest one is chosen.

    Where scores of a learned projection choose the code, its length says nothing about vectors.
    """
    codes = table[:, :PROBED].transpose(0, 1).to(quantizer.code_tables[0])  # (K, G, D)
    z = codes.repeat_interleave(quantizer.num_tokens // codes.shape[1], dim=1)  # (K, N, D)
    apart = (quantizer.quantize(z).z_q - z).norm(dim=-1)
    return float((apart <= 1e-3 * z.norm(dim=-1)).double().mean()) >= 0.5


def one_table(quantizer: Quantizer) -> Tensor | None:
    """Return the codes of a quantizer with one level of whole vectors; None for any other."""
    tables = quantizer.code_tables
    if len(tables) != 1 or tables[0] is None or tables[0].shape[-1] != quantizer.dim:
        return None
    return tables[0].detach().float().cpu()
