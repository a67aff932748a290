"""Checks of codes and of how they are used: dead, rare, twins, far away, or without children."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from spectok.evaluation.diagnosis import OR, Finding, graded
from spectok.metrics import FAR, are_astray, find_twins
from spectok.quantizers import perplexity
from spectok.quantizers.statistics import USED_SHARE
from spectok.token_spec import TokenSpec

DEAD_SHARE = 0.01
"""Of the uniform share: a running frequency below this has not been fed for 460 steps."""
DEAD, DEAD_ERROR = 0.02, 0.25
RARE = 0.3
TWINS, TWINS_ERROR = 0.02, 0.25
FLAT, FLAT_ERROR = 0.2, 0.05  # of the ceiling of the perplexity
CONSTANT, CONSTANT_SHARE = 1.1, 0.1  # perplexity of a position that says nothing; share of them
STRAY, STRAY_SHARE = 3.0, 0.02  # how much longer or shorter than all latents; share of codes
COUNTED = 10  # tokens per code that it takes to call one dead
BRANCHLESS = 0.02  # share of nodes, or of tokens, below a node whose children are one
PARENT_COUNTS = 32  # tokens that it takes to judge a node's children

REVIVE = OR.join(
    [
        "set tokenizer.quantizer.revive_below=0.1",
        "choose a quantizer that revives unused codes (spectok list quantizers)",
        "choose a smaller tokenizer.codebook_size",
    ]
)
SPREAD = OR.join(
    [
        "lower train.learning_rate",
        "lower tokenizer.quantizer.commitment_weight",
        "choose a smaller tokenizer.codebook_size",
        "choose a quantizer that revives unused codes (spectok list quantizers)",
    ]
)
MERGE = OR.join(
    [
        "lower tokenizer.codebook_size to the number of distinct codes",
        "train longer, since twins are codes that were copied and have not moved apart",
        "revive less often, by a larger tokenizer.quantizer.revive_every",
    ]
)
SHORTEN = OR.join(
    [
        "choose a smaller tokenizer.num_tokens",
        "choose a larger tokenizer.downsample_factor",
        "take images without an equal border",
    ]
)
MEET = OR.join(
    [
        "raise tokenizer.quantizer.commitment_weight, so that latents come to their codes",
        "raise tokenizer.quantizer.codebook_weight, so that codes come to their latents",
        "train longer",
        "convert all weights, if some were converted",
    ]
)
BRANCH = OR.join(
    [
        "choose a smaller tokenizer.quantizer.num_levels",
        "choose a smaller tokenizer.quantizer.branching",
        "set tokenizer.quantizer.revive_below=0.1",
        "train longer",
    ]
)


def level_name(spec: TokenSpec, level: int) -> str:
    """Return how a level is called in findings."""
    return f"level {level}" if spec.num_levels > 1 else "the codebook"


def check_frequencies(model: nn.Module) -> list[Finding]:
    """Find dead and rare codes by the running frequencies that training kept with the weights."""
    found = []
    for name, frequency in running_frequencies(model):
        size = frequency.shape[-1]
        shares = frequency.float() * size
        found += _unused(
            name,
            float((shares < DEAD_SHARE).double().mean()),
            float(((shares >= DEAD_SHARE) & (shares < USED_SHARE)).double().mean()),
            frequency.numel(),
            "at the end of training",
        )
    return found


def running_frequencies(model: nn.Module) -> Iterator[tuple[str, Num[Tensor, "*g k"]]]:
    """Yield the running frequencies of codes that a model holds, with their names.

    Those of a quantizer that has taken no step are still uniform, and say nothing.
    """
    for prefix, module in model.named_modules():
        frequency = dict(module.named_buffers(recurse=False)).get("frequency")
        steps = getattr(module, "num_steps", None)
        if frequency is not None and (steps is None or int(steps)):
            yield f"{prefix}.frequency", frequency


def check_counts(spec: TokenSpec, by_level: Sequence[Num[Tensor, "g k"]]) -> list[Finding]:
    """Find dead and rare codes by how often they are chosen on data.

    Args:
        spec: Layout of the tokens.
        by_level: See :func:`spectok.metrics.split_by_codebook`.
    """
    found = []
    for level, counts in enumerate(by_level):
        judged = counts[counts.sum(1) >= COUNTED * counts.shape[1]].double()
        if not len(judged):
            continue
        shares = judged / judged.sum(1, keepdim=True) * judged.shape[1]
        found += _unused(
            level_name(spec, level),
            float((judged == 0).double().mean()),
            float(((judged > 0) & (shares < USED_SHARE)).double().mean()),
            judged.numel(),
            "on this data",
        )
    return found


def check_twins(spec: TokenSpec, tables: Sequence[Float[Tensor, "_ _ _"] | None]) -> list[Finding]:
    """Find codes that are all but equal to another code of their codebook."""
    found = []
    for level, table in enumerate(tables):
        if table is None or table.shape[1] < 2:
            continue
        twins = find_twins(table.detach().float().cpu())
        doubled = int((twins != torch.arange(twins.shape[1])).sum())
        severity = graded(doubled / twins.numel(), TWINS, TWINS_ERROR)
        if severity is not None:
            found.append(
                Finding(
                    "twins",
                    severity,
                    level_name(spec, level),
                    f"{doubled:,} of {twins.numel():,} codes are copies of another: their indices "
                    f"cost bits and say nothing",
                    MERGE,
                    {"twins": doubled, "codes": twins.numel()},
                )
            )
    return found


def check_astray(spec: TokenSpec, tables: Sequence[Float[Tensor, "_ _ _"] | None]) -> list[Finding]:
    """Find codes so far from all others that no vector can be near them."""
    found = []
    for level, table in enumerate(tables):
        if table is None:
            continue
        astray = sum(int(are_astray(codebook).sum()) for codebook in table.detach().double().cpu())
        codes = table.shape[0] * table.shape[1]
        if astray:
            found.append(
                Finding(
                    "norms",
                    graded(astray / codes, 0.0, DEAD_ERROR) or "warning",
                    level_name(spec, level),
                    f"{astray:,} of {codes:,} codes lie {FAR:g} times farther from the middle of "
                    f"their codebook than nine tenths of it, and are never the nearest",
                    REVIVE,
                    {"astray": astray, "codes": codes},
                )
            )
    return found


def check_perplexity(
    spec: TokenSpec,
    by_level: Sequence[Num[Tensor, "g k"]],
    positions: Sequence[Mapping[str, list[float]]],
) -> list[Finding]:
    """Find levels and positions whose tokens say far less than their bits could.

    The ceiling of a perplexity is the size of the codebook, or the number of tokens counted where
    that is smaller.

    Args:
        spec: Layout of the tokens.
        by_level: Counts on data, one row per codebook.
        positions: Perplexities at each position of each level.
    """
    found = []
    for level, (counts, places) in enumerate(zip(by_level, positions)):
        tokens = counts.sum(1).double()
        ceiling = tokens.clamp(max=counts.shape[1])
        reached = (perplexity(counts.double()) * tokens).sum() / tokens.sum().clamp_min(1)
        highest = float((ceiling * tokens).sum() / tokens.sum().clamp_min(1))
        share = float(reached) / max(1.0, highest)
        if highest >= 2 and share < FLAT:
            found.append(
                Finding(
                    "perplexity",
                    "error" if share < FLAT_ERROR else "warning",
                    level_name(spec, level),
                    f"perplexity {float(reached):.1f} of at most {highest:.0f}: tokens are used as "
                    f"if there were {float(reached):.0f} codes",
                    SPREAD,
                    {"perplexity": float(reached), "ceiling": highest},
                )
            )
            continue  # its positions can be no better
        constant = sum(value < CONSTANT for value in places["perplexity"])
        if constant / len(places["perplexity"]) >= CONSTANT_SHARE:
            found.append(
                Finding(
                    "constant positions",
                    "warning",
                    level_name(spec, level),
                    f"{constant:,} of {len(places['perplexity']):,} positions almost always hold "
                    f"one code (perplexity below {CONSTANT})",
                    SHORTEN,
                    {"constant": constant, "positions": len(places["perplexity"])},
                )
            )
    return found


def check_children(
    spec: TokenSpec,
    tables: Sequence[Float[Tensor, "_ _ _"] | None],
    by_level: Sequence[Num[Tensor, "g k"]] | None = None,
) -> list[Finding]:
    """Find levels of a tree that do not branch: where a node's children are one, or used as one.

    Args:
        spec: Layout of the tokens.
        tables: The codes of each level, one codebook per node of the level above.
        by_level: Counts on data. None: there is no data.
    """
    found = []
    for level, (layout, table) in enumerate(zip(spec.levels, tables)):
        if layout.codebook != "path" or layout.vocab_size < 2:
            continue
        if table is not None:
            same = (find_twins(table.detach().float().cpu()) == 0).all(1)
            message = "of {total:,} nodes of the level above have no children that differ"
            found += _branchless(spec, level, int(same.sum()), len(same), message)
        if by_level is not None:
            judged = by_level[level][by_level[level].sum(1) >= PARENT_COUNTS].double()
            one = perplexity(judged) < CONSTANT if len(judged) else torch.zeros(0)
            message = "of {total:,} nodes in use send all that reaches them to one child"
            found += _branchless(spec, level, int(one.sum()), len(judged), message)
    return found


def check_norms(
    name: str,
    vectors: Float[Tensor, "p d"],
    chosen: Float[Tensor, "p d"],
    table: Float[Tensor, "g k d"] | None,
) -> list[Finding]:
    """Find codes whose lengths are not those of the vectors they stand for.

    Args:
        name: Of the quantizer.
        vectors: A sample of what is quantised.
        chosen: The codes, or sums of codes, that were chosen for them.
        table: All codes, where one index chooses one code. None: they are sums, or not stored.
    """
    lengths, code_lengths = vectors.norm(dim=-1), chosen.norm(dim=-1)
    are_equal = float(code_lengths.max() - code_lengths.min()) <= 1e-3 * float(code_lengths.mean())
    if are_equal and not torch.equal(chosen, chosen[:1].expand_as(chosen)):
        return []  # different codes of one length: directions are compared, not lengths
    typical = float(lengths.median())
    ratio = float(code_lengths.median()) / max(typical, 1e-12)
    numbers = {"latents": typical, "codes": float(code_lengths.median())}
    if not 1 / STRAY <= ratio <= STRAY:
        return [
            Finding(
                "norms",
                "error",
                name,
                f"chosen codes are {ratio:.2g} times as long as the vectors they stand for "
                f"(medians {numbers['codes']:.3g} and {numbers['latents']:.3g})",
                MEET,
                numbers,
            )
        ]
    if table is None:
        return []
    all_lengths = table.norm(dim=-1)
    low, high = float(lengths.min()) / STRAY, float(lengths.max()) * STRAY
    stray = int(((all_lengths < low) | (all_lengths > high)).sum())
    severity = graded(stray / all_lengths.numel(), STRAY_SHARE, DEAD_ERROR)
    if severity is None:
        return []
    return [
        Finding(
            "norms",
            severity,
            name,
            f"{stray:,} of {all_lengths.numel():,} codes are {STRAY:g} times longer than the "
            f"longest vector or shorter than the shortest, and are never the nearest",
            REVIVE,
            numbers | {"stray": stray},
        )
    ]


def _unused(place: str, dead: float, rare: float, codes: int, when: str) -> list[Finding]:
    found: list[Finding] = []
    numbers: dict[str, Any] = {"dead": dead, "rare": rare, "codes": codes}
    severity = graded(dead, DEAD, DEAD_ERROR)
    if severity is not None:
        found.append(
            Finding(
                "dead codes",
                severity,
                place,
                f"{100 * dead:.1f} % of {codes:,} codes were never chosen {when}",
                REVIVE,
                numbers,
            )
        )
    if rare >= RARE:
        found.append(
            Finding(
                "rare codes",
                "warning",
                place,
                f"{100 * rare:.1f} % of {codes:,} codes were chosen less than a tenth as often as "
                f"if all were equal {when}",
                SPREAD,
                numbers,
            )
        )
    return found


def _branchless(spec: TokenSpec, level: int, count: int, total: int, message: str) -> list[Finding]:
    severity = graded(count / max(1, total), BRANCHLESS, DEAD_ERROR)
    if severity is None:
        return []
    return [
        Finding(
            "tree",
            severity,
            level_name(spec, level),
            f"{count:,} {message.format(total=total)}: this level adds bits and no detail below "
            f"them",
            BRANCH,
            {"nodes": count, "of": total},
        )
    ]
