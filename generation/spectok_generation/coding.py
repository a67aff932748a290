"""Arithmetic coding of tokens with a prior, from tables of integers.

The prior runs in float64, place by place, when encoding as when decoding. How far each logit is
below the largest is rounded to a 256th of a nat; from there on there are only integers, so that a
computation that differs in its last digits, with other batches, threads or machines, gives the same
tables. Where a value lies so close to the middle between two steps that it might be rounded either
way, all values of that place are moved by a fraction of a step first, and the file says so.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import TokenSpec
from spectok.codec import TokenCoder
from spectok.codec.packing import Reader, write_number
from spectok.errors import ConfigError, DataError, InputError
from spectok_generation.conditions import Condition
from spectok_generation.priors import AutoregressivePrior
from spectok_generation.records import prior_fingerprint
from spectok_generation.sampling import NOT_FINITE

GROUP = 64
"""Rows that are coded in turns, place by place; part of the format."""
STEPS = 256
"""Steps of a nat; part of the format, as are the next three."""
UNIT, SHIFTS = 1 << 32, 32
WEIGHTS = np.floor(np.exp(-np.arange(24 * STEPS) / STEPS) * UNIT + 0.5)
"""Weight of a code so many steps below the likeliest: integers, as the coder takes them; 0 beyond.

No entry but the first is within 1e-5 of where it would be rounded otherwise, so that the
exponential function of any machine gives the same table; a test has its hash.
"""
MARGIN = 2e-8
"""Values this close to where they are rounded otherwise, in steps, are moved."""
WORD = 4  # bytes


class PriorCoder(TokenCoder):
    """Codes tokens with the probabilities that an autoregressive prior gives them.

    Args:
        prior: A trained ``gpt``, ``pixelcnn`` or other prior with exact likelihoods, on the device
            to run on; a copy in float64 is made. One that reads text codes without a text.
        rows: Images that the prior computes at once. It changes neither bytes nor tokens.

    Raises:
        InputError: If the prior gives no probabilities of tokens.
        ConfigError: If the library constriction is not installed.
    """

    def __init__(self, prior: Any, rows: int = 16):
        try:
            import constriction
        except ImportError as error:
            raise ConfigError(
                "coding with a prior needs the library constriction; install it by pip install "
                "'spectok[codec]'"
            ) from error
        if not isinstance(prior, AutoregressivePrior):
            raise InputError(
                f"a {type(prior).__name__} does not give the probability of each token, which "
                "coding needs; give an autoregressive prior, such as gpt or pixelcnn"
            )
        if rows < 1:
            raise InputError(f"rows {rows} must be at least 1")
        stream: Any = getattr(constriction, "stream")  # noqa: B009 - its types leave it out
        self._queue, self._family = stream.queue, stream.model.Categorical(perfect=False)
        self._fingerprint = prior_fingerprint(prior)
        self._prior = copy.deepcopy(prior).double().eval()
        self._rows = rows

    @property
    def token_spec(self) -> TokenSpec:
        """See :class:`~spectok.codec.TokenCoder`."""
        return self._prior.token_spec

    @property
    def fingerprint(self) -> str:
        """See :class:`~spectok.codec.TokenCoder`: the prior's, with that of the tables."""
        tables = hashlib.sha256(WEIGHTS.astype("<f8").tobytes())
        tables.update(self._fingerprint.encode())
        return tables.hexdigest()

    @property
    def num_classes(self) -> int:
        """See :class:`~spectok.codec.TokenCoder`."""
        return self._prior.num_classes

    @torch.no_grad()
    def encode(
        self, indices: Int[Tensor, "n t"], labels: Int[Tensor, "n"] | None, *, together: bool = True
    ) -> bytes:
        """See :meth:`spectok.codec.TokenCoder.encode`."""
        self.token_spec.validate(indices)
        moved: list[tuple[int, int, int]] = []
        coders = [self._queue.RangeEncoder() for _ in range(1 if together else len(indices))]
        for group, first in enumerate(range(0, len(indices), GROUP)):
            part = indices[first : first + GROUP]
            walk = _Walk(self._prior, _slice(labels, first), len(part), self._rows)
            for place, vocab_size in enumerate(self.token_spec.vocab_sizes):
                if vocab_size == 1:
                    continue
                steps = walk.steps(part[:, :place])
                shift = choose_shift(steps)
                if shift:
                    moved.append((group, place, shift))
                weights, symbols = tables(steps, shift), part[:, place].numpy().astype(np.int32)
                if together:
                    coders[0].encode(symbols, self._family, weights)
                else:
                    for row in range(len(part)):
                        one = slice(row, row + 1)
                        coders[first + row].encode(symbols[one], self._family, weights[one])
        return _join(moved, [coder.get_compressed() for coder in coders], together)

    @torch.no_grad()
    def decode(
        self, data: bytes, count: int, labels: Int[Tensor, "n"] | None, *, together: bool = True
    ) -> Int[Tensor, "n t"]:
        """See :meth:`spectok.codec.TokenCoder.decode`."""
        num_groups = -(-count // GROUP)
        moved, streams = _split(data, num_groups, self.token_spec, count, together)
        coders = [self._queue.RangeDecoder(words) for words in streams]
        found = []
        for group, first in enumerate(range(0, count, GROUP)):
            size = min(GROUP, count - first)
            walk = _Walk(self._prior, _slice(labels, first), size, self._rows)
            part = torch.zeros(size, self.token_spec.num_tokens, dtype=torch.int64)
            for place, vocab_size in enumerate(self.token_spec.vocab_sizes):
                if vocab_size == 1:
                    continue
                weights = tables(walk.steps(part[:, :place]), moved.get((group, place), 0))
                mine = coders if together else coders[first : first + size]
                part[:, place] = torch.from_numpy(self._symbols(mine, weights))
            found.append(part)
        return torch.cat(found)

    def _symbols(self, coders: list[Any], weights: np.ndarray) -> np.ndarray:
        try:
            if len(coders) == 1:
                return coders[0].decode(self._family, weights).astype(np.int64)
            parts = [
                coder.decode(self._family, weights[i : i + 1]) for i, coder in enumerate(coders)
            ]
            return np.concatenate(parts).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise DataError(
                "its coded tokens cannot be read: the prior computes other numbers on this machine"
            ) from error


class _Walk:
    """A prior going through the places of some rows, in batches of one number of rows.

    Args:
        prior: In float64 and eval mode.
        labels: Class of each row; None: no condition.
        count: Number of rows.
        rows: Rows of a batch; the last one is filled up.
    """

    def __init__(self, prior: AutoregressivePrior, labels: Tensor | None, count: int, rows: int):
        prior.check_can_omit(labels)
        self._prior, self._parts = prior, torch.arange(count).split(rows)
        self._numbers = [torch.cat([p, p[-1:].expand(rows - len(p))]) for p in self._parts]
        condition: Condition = prior.check_condition(labels, count)
        self._states = [prior.start(condition[n.to(prior.device)]) for n in self._numbers]

    def steps(self, indices: Int[Tensor, "b k"]) -> Float[np.ndarray, "b v"]:
        """Return how many steps each code of the next place is below the likeliest.

        Raises:
            InputError: If the logits are not finite.
        """
        found = []
        for part, numbers, state in zip(self._parts, self._numbers, self._states):
            given = indices[numbers].to(self._prior.device)
            found.append(self._prior.next_logits(state, given)[: len(part)].cpu())
        logits = torch.cat(found).double().numpy()
        if not np.isfinite(logits).all():
            raise InputError(NOT_FINITE.format(self._prior.dtype))
        return (logits.max(1, keepdims=True) - logits) * STEPS


def choose_shift(steps: Float[np.ndarray, "b v"]) -> int:
    """Return by which fraction of a step to move values so that none is close to a middle.

    Args:
        steps: Values to be rounded.

    Returns:
        0 if none is, otherwise the first of 1..15 32nds that helps, or the one that helps most.
    """
    near = steps[steps < len(WEIGHTS) + 1]
    gaps = []
    for shift in range(SHIFTS // 2):
        moved = near + shift / SHIFTS
        gaps.append(np.abs(moved - np.floor(moved) - 0.5).min())
        if gaps[-1] > MARGIN:
            return shift
    return int(np.argmax(gaps))


def tables(steps: Float[np.ndarray, "b v"], shift: int) -> Float[np.ndarray, "b v"]:
    """Return the weight of each code: integers, as float64."""
    rounded = np.rint(np.minimum(steps, len(WEIGHTS) + 1) + shift / SHIFTS).astype(np.int64)
    return np.where(rounded < len(WEIGHTS), WEIGHTS[np.minimum(rounded, len(WEIGHTS) - 1)], 0.0)


def _slice(labels: Tensor | None, first: int) -> Tensor | None:
    return None if labels is None else labels[first : first + GROUP]


def _join(moved: list[tuple[int, int, int]], streams: list[np.ndarray], together: bool) -> bytes:
    """Return the bytes: which places were moved, the lengths of the streams, and the streams."""
    numbers = [len(moved), *(value for entry in moved for value in entry)]
    if not together:
        numbers += map(len, streams)
    words = [stream.astype("<u4").tobytes() for stream in streams]
    return b"".join([*map(write_number, numbers), *words])


def _split(
    data: bytes, num_groups: int, spec: TokenSpec, count: int, together: bool
) -> tuple[dict[tuple[int, int], int], list[np.ndarray]]:
    """Return what :func:`_join` joined.

    Raises:
        DataError: If it joined no such bytes.
    """
    reader = Reader(data)
    moved = {}
    for _ in range(reader.number(reader.left // 3, "number of moved places")):
        group = reader.number(num_groups - 1, "moved group")
        place = reader.number(spec.num_tokens - 1, "moved place")
        moved[group, place] = reader.number(SHIFTS // 2 - 1, "shift")
    if together:
        lengths = [reader.left // WORD]
    else:
        if count > reader.left:
            raise DataError(f"it claims {count:,} streams where {reader.left:,} bytes are left")
        lengths = [reader.number(reader.left // WORD, "length of a stream") for _ in range(count)]
    streams = [
        np.frombuffer(reader.take(WORD * length), "<u4").astype(np.uint32) for length in lengths
    ]
    if reader.left:
        raise DataError("its coded tokens are followed by bytes that mean nothing")
    return moved, streams
