"""Images of any size to the bytes of a file, and back, with any tokenizer."""

from __future__ import annotations

import binascii
import functools
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from spectok.codec.coder import TokenCoder
from spectok.codec.container import FINGERPRINT, Contents, read_contents, write_contents
from spectok.codec.packing import pack, unpack
from spectok.errors import CheckpointError, DataError, InputError
from spectok.evaluation.reconstruction import block_size, in_blocks
from spectok.images import to_float, to_uint8
from spectok.modeling import model_fingerprint
from spectok.sizes import ImageSize, as_size, size_of, times
from spectok.tiling import Tiling, plan_tiles
from spectok.tokenizer import ImageTokenizer

MAX_PIXELS, MAX_TOKENS = 1 << 26, 1 << 24
"""The most that the images of a file have together, unless the reader allows more."""
AT_ONCE = 64
"""Tiles encoded or decoded at once on a GPU."""


@dataclass(frozen=True)
class StoredTokens:
    """The tokens of a file, checked, and not decoded yet.

    Args:
        tilings: Size and tiles of each image.
        indices: int64 tokens of each image's n tiles, (n, T).
        labels: Class of each image, the number of classes for none; None without classes.
        names: Name of each image, if the file keeps them.
        num_tokens: How many leading tokens of each tile the file keeps; None: all T.
    """

    tilings: list[Tiling]
    indices: list[Int[Tensor, "n t"]]
    labels: list[int] | None
    names: list[str] | None
    num_tokens: int | None = None


@dataclass(frozen=True)
class Decompressed:
    """The images of a file.

    Args:
        images: uint8, each (C, H, W).
        labels: See :class:`StoredTokens`.
        names: See :class:`StoredTokens`.
    """

    images: list[UInt8[Tensor, "c _ _"]]
    labels: list[int] | None
    names: list[str] | None


class Codec:
    """Compresses images into bytes with a tokenizer, and a coder for its tokens if there is one.

    Without a coder the indices are packed: a file takes the bits that equally likely indices need.
    The bytes depend on images, weights and options alone: on a CPU networks run on blocks of one
    number of rows, whatever is given at once.

    Args:
        tokenizer: A trained tokenizer, on the device to run on; put into eval mode.
        coder: A coder of its tokens, such as ``spectok_generation.PriorCoder``.

    Raises:
        InputError: If the coder is for tokens of another layout.
    """

    def __init__(self, tokenizer: ImageTokenizer, coder: TokenCoder | None = None):
        if coder is not None and coder.token_spec != tokenizer.token_spec:
            raise InputError(
                f"this coder is for {coder.token_spec.num_tokens} tokens laid out differently from "
                f"the {tokenizer.token_spec.num_tokens} of this {type(tokenizer).__name__}"
            )
        self.tokenizer, self.coder = tokenizer.eval(), coder
        self._own: Any = tuple(tokenizer.image_shape[1:])
        self._weights = _short(model_fingerprint(tokenizer))

    def compress(
        self,
        images: Iterable[Tensor],
        *,
        labels: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        tile: ImageSize | None = None,
        overlap: int | None = None,
        together: bool = True,
        num_tokens: int | None = None,
    ) -> bytes:
        """Return a file of images.

        Args:
            images: Each (C, H, W), floats in [-1, 1] or uint8, of any sizes; or a batch.
            labels: Class of each image, for a coder that takes classes. None: it is coded without.
            names: Name of each image to keep. None: none are kept.
            tile: Size of tiles. None: images are whole where the tokenizer, and the coder, take
                their size, and are cut into tiles of the tokenizer's own size otherwise.
            overlap: Pixels that neighbouring tiles share; None: a quarter of a tile.
            together: Let the coder write one stream; otherwise one for each tile.
            num_tokens: Keep only the first tokens of each tile, as many as decode on their own, for
                tiles of the tokenizer's own size and without a coder. None: all.

        Raises:
            InputError: If images, labels or names do not fit.
        """
        images = [self._as_float(image) for image in images]
        if not images:
            raise InputError("there are no images to compress; give at least one")
        for given, what in ((labels, "labels"), (names, "names")):
            if given is not None and len(given) != len(images):
                raise InputError(f"{len(given)} {what} are not {len(images)}, one for each image")
        sizes = [size_of(image) for image in images]
        tiles = self._choose_tiles(sizes, tile, overlap)
        tilings = self._tilings(sizes, tiles, names)
        self._check_prefix(num_tokens, tilings)
        tokens = [part[:, :num_tokens].contiguous() for part in self._encode(images, tilings)]
        classes = self._classes(labels, len(images))
        contents = Contents(
            tokenizer=self._weights,
            coder=None if self.coder is None else _short(self.coder.fingerprint),
            sizes=sizes,
            tile=tiles,
            labels=classes,
            num_classes=self.coder.num_classes if self.coder else 0,
            names=None if names is None else list(names),
            together=together,
            checks=[_check(part, tiling) for part, tiling in zip(tokens, tilings)],
            check=_check_all(tokens),
            payload=b"",
            num_tokens=num_tokens,
        )
        return write_contents(replace(contents, payload=self._payload(tokens, contents)))

    def decompress(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Decompressed:
        """Return the images of a file: all of them, or an error.

        Args:
            data: What :meth:`compress` returned.
            max_pixels: The most that its images may have together.

        Raises:
            DataError: Says whether it is another file, newer, cut short, damaged, or claims too
                much, or which images came out differently from what was written.
            CheckpointError: If it was written with other weights.
        """
        stored = self.read(data, max_pixels=max_pixels)
        return Decompressed(list(self.decode(stored)), stored.labels, stored.names)

    def read(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> StoredTokens:
        """Return the tokens of a file, without decoding them; see :meth:`decompress`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"a file of images is bytes, not {type(data).__name__}")
        contents = read_contents(bytes(data), max_pixels)
        self._check_weights(contents)
        try:
            tilings = [self._tiling(size, contents.tile) for size in contents.sizes]
            tile_sizes = {tiling.tile_size for tiling in tilings}
            self._check_prefix(contents.num_tokens, tilings)
            layouts = {size: self.tokenizer.token_spec_at(size) for size in tile_sizes}
        except InputError as error:
            raise DataError(f"it is no valid file of images: {error}") from error
        kept = {size: contents.num_tokens or spec.num_tokens for size, spec in layouts.items()}
        shapes = [(tiling.num_tiles, kept[tiling.tile_size]) for tiling in tilings]
        total = sum(tiles * tokens for tiles, tokens in shapes)
        if total > MAX_TOKENS:
            raise DataError(f"it claims {total:,} tokens, over {MAX_TOKENS:,}; it is no valid file")
        try:
            flat = self._unpayload(contents, tilings)
        except DataError as error:
            raise DataError(f"it is no valid file of images: {error}") from error
        ends = list(itertools.accumulate(tiles * tokens for tiles, tokens in shapes))
        parts = np.split(flat, ends[:-1])
        indices = [torch.from_numpy(p).view(shape) for p, shape in zip(parts, shapes)]
        self._check_tokens(contents, indices, tilings)
        return StoredTokens(tilings, indices, contents.labels, contents.names, contents.num_tokens)

    def decode(self, stored: StoredTokens) -> Iterator[UInt8[Tensor, "c _ _"]]:
        """Decode tokens, image by image, as uint8 (C, H, W)."""
        pairs = zip(stored.tilings, stored.indices)
        for tiling, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
            tokenizer = self.tokenizer.at_size(tiling.tile_size)
            block = block_size(tokenizer) or AT_ONCE
            alike = (indices for _, indices in run)
            for part in _batched(alike, max(1, block // tiling.num_tiles)):
                rows = torch.cat(part)
                missing = tokenizer.token_spec.num_tokens - rows.shape[1]
                rows = torch.nn.functional.pad(rows, (0, missing)).to(tokenizer.device)
                with torch.no_grad():
                    decode = functools.partial(tokenizer.decode, num_tokens=stored.num_tokens)
                    tiles = in_blocks(decode, rows, block).float()
                for image in tiles.unflatten(0, (len(part), tiling.num_tiles)):
                    yield to_uint8(tiling.join(image[None])[0]).cpu()

    # -- sizes -----------------------------------------------------------------------------------

    def _as_float(self, image: Tensor) -> Float[Tensor, "c h w"]:
        channels = self.tokenizer.image_shape[0]
        if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != channels:
            given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"an image of shape {given} is not ({channels}, H, W)")
        return to_float(image) if image.dtype == torch.uint8 else image

    def _choose_tiles(
        self, sizes: list[tuple[int, int]], tile: ImageSize | None, overlap: int | None
    ) -> tuple[int, int, int] | None:
        """Return height, width and overlap of the tiles; None: each image is whole."""
        if tile is None:
            others = any(size != self._own for size in sizes)
            if not others or not (self.coder or self.tokenizer.why_fixed_size()):
                return None
        chosen: Any = self._own if tile is None else as_size(tile)
        if self.coder is not None and chosen != self._own:
            raise InputError(
                f"the coder is for tiles of {times(self._own)} pixels, not {times(chosen)}; leave "
                "the tile out"
            )
        shared = plan_tiles(self.tokenizer, chosen, tile=chosen, overlap=overlap).overlap
        return chosen[0], chosen[1], shared

    def _tilings(
        self,
        sizes: list[tuple[int, int]],
        tiles: tuple[int, int, int] | None,
        names: Sequence[str] | None,
    ) -> list[Tiling]:
        """Return the tiling of each image; an error names the first image that has none."""
        found = []
        for number, size in enumerate(sizes):
            try:
                found.append(self._tiling(size, tiles))
            except InputError as error:
                which = f"image {number}" if names is None else names[number]
                raise InputError(f"{which}: {error}") from error
        return found

    def _tiling(self, size: tuple[int, int], tiles: tuple[int, int, int] | None) -> Tiling:
        if tiles is None:
            if self.coder is not None and size != self._own:
                raise InputError(f"its image of {times(size)} pixels has no tiles for the coder")
            return plan_tiles(self.tokenizer, size)
        return plan_tiles(self.tokenizer, size, tile=tiles[:2], overlap=tiles[2])

    def _check_prefix(self, num_tokens: int | None, tilings: list[Tiling]) -> None:
        """Refuse a number of tokens that does not decode, or that nothing here codes."""
        if num_tokens is None:
            return
        if self.coder is not None or any(tiling.tile_size != self._own for tiling in tilings):
            raise InputError(
                f"num_tokens {num_tokens} is for tiles of {times(self._own)} pixels and no coder"
            )
        self.tokenizer.check_prefix(num_tokens)
        if num_tokens < 1:
            raise InputError(f"num_tokens {num_tokens} leaves nothing to write; keep at least 1")

    # -- tokens ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode(self, images: list[Tensor], tilings: list[Tiling]) -> Iterator[Int[Tensor, "n t"]]:
        """Yield the tokens of each image's tiles."""
        for tiling, run in itertools.groupby(zip(tilings, images), key=lambda pair: pair[0]):
            tokenizer = self.tokenizer.at_size(tiling.tile_size)
            block = block_size(tokenizer) or AT_ONCE
            alike = (image for _, image in run)
            for part in _batched(alike, max(1, block // tiling.num_tiles)):
                tiles = tiling.cut(torch.stack(part)).flatten(0, 1)
                rows = tiles.to(tokenizer.device, tokenizer.dtype)
                tokens = in_blocks(tokenizer.encode, rows, block).cpu()
                yield from tokens.split(tiling.num_tiles)

    def _classes(self, labels: Sequence[int] | None, count: int) -> list[int] | None:
        num_classes = self.coder.num_classes if self.coder is not None else 0
        if labels is None:
            return None
        wrong = [label for label in labels if not 0 <= label < num_classes]
        if wrong:
            known = f"0..{num_classes - 1}" if num_classes else "none: nothing here takes classes"
            raise InputError(f"class {wrong[0]} is not one of those there are ({known})")
        return [int(label) for label in labels]

    def _payload(self, tokens: list[Tensor], contents: Contents) -> bytes:
        if self.coder is not None:
            rows = torch.cat(tokens)
            return self.coder.encode(
                rows, _per_tile(contents.labels, map(len, tokens)), together=contents.together
            )
        tilings = [self._tiling(size, contents.tile) for size in contents.sizes]
        radices = self._radices(tilings, contents.num_tokens)
        return pack(torch.cat([part.flatten() for part in tokens]).numpy(), radices)

    def _unpayload(self, contents: Contents, tilings: list[Tiling]) -> np.ndarray:
        """Return all tokens, one after the other."""
        if self.coder is None:
            return unpack(contents.payload, self._radices(tilings, contents.num_tokens))
        counts = [tiling.num_tiles for tiling in tilings]
        labels = _per_tile(contents.labels, counts)
        tokens = self.coder.decode(
            contents.payload, sum(counts), labels, together=contents.together
        )
        return tokens.flatten().numpy()

    def _radices(self, tilings: list[Tiling], num_tokens: int | None) -> np.ndarray:
        """Return the vocabulary size of each token of all images that is kept."""
        sizes = {
            size: np.array(self.tokenizer.token_spec_at(size).vocab_sizes[:num_tokens])
            for size in {tiling.tile_size for tiling in tilings}
        }
        return np.concatenate([np.tile(sizes[t.tile_size], t.num_tiles) for t in tilings])

    # -- checks ----------------------------------------------------------------------------------

    def _check_weights(self, contents: Contents) -> None:
        if contents.tokenizer != self._weights:
            raise CheckpointError(
                f"it was written with another tokenizer (weights {contents.tokenizer.hex()}, this "
                f"one's {self._weights.hex()}); give the one that wrote it"
            )
        given = None if self.coder is None else _short(self.coder.fingerprint)
        if contents.coder is None and given is not None:
            raise CheckpointError("it was written without a prior; leave the prior out")
        if contents.coder is not None and given is None:
            raise CheckpointError(
                f"it was written with a prior (weights {contents.coder.hex()}); give it too"
            )
        if contents.coder is not None and given is not None and contents.coder != given:
            raise CheckpointError(
                f"it was written with another prior (weights {contents.coder.hex()}, this one's "
                f"{given.hex()}); give the one that wrote it"
            )
        expected = self.coder.num_classes if self.coder is not None else 0
        if contents.labels is not None and contents.num_classes != expected:
            raise DataError(
                f"it is no valid file of images: {contents.num_classes} classes are not {expected}"
            )

    def _check_tokens(
        self, contents: Contents, indices: list[Tensor], tilings: list[Tiling]
    ) -> None:
        found = [_check(part, tiling) for part, tiling in zip(indices, tilings)]
        wrong = [i for i, pair in enumerate(zip(found, contents.checks)) if pair[0] != pair[1]]
        if wrong or _check_all(indices) != contents.check:
            which = f"first at image {wrong[0]}, {len(wrong)} of {len(found)}" if wrong else "all"
            raise DataError(
                f"its tokens came out differently from what was written ({which}): the prior "
                "computes other numbers on this machine; nothing was decoded"
            )


def _short(fingerprint: str) -> bytes:
    return bytes.fromhex(fingerprint)[:FINGERPRINT]


def _check(indices: Tensor, tiling: Tiling) -> int:
    """Return the CRC-16 of an image's tokens and size."""
    size = struct.pack("<II", *tiling.image_size)
    return binascii.crc_hqx(indices.numpy().astype("<i8").tobytes() + size, 0xFFFF)


def _check_all(indices: list[Tensor]) -> int:
    check = 0
    for part in indices:
        check = binascii.crc32(part.numpy().astype("<i8").tobytes(), check)
    return check


def _per_tile(labels: list[int] | None, counts: Iterable[int]) -> Tensor | None:
    if labels is None:
        return None
    return torch.tensor([label for label, n in zip(labels, counts) for _ in range(n)])


def _batched(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    items = iter(items)
    while part := list(itertools.islice(items, count)):
        yield part
