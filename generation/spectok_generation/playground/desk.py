"""What one visitor of the playground has before them: a model, its pictures, the one chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError
from spectok_generation.playground.pictures import MAX_FILES, read_uploads
from spectok_generation.playground.subjects import Subject
from spectok_generation.playground.views import encode


@dataclass(frozen=True, eq=False)
class Desk:
    """Pictures to choose from, and the two that are chosen.

    Args:
        name: The model.
        images: The examples, then the uploads, in the shape of the model.
        uploads: Files of the uploads, which another model reads again.
        chosen: Number of the picture that is shown.
        second: Number of the one whose tokens are swapped in.
    """

    name: str
    images: Float[Tensor, "n c h w"]
    uploads: tuple[str, ...] = ()
    chosen: int = 0
    second: int = 1

    @property
    def image(self) -> Float[Tensor, "1 c h w"]:
        """The picture chosen."""
        return self.images[self.chosen][None]

    def tokens(self, subject: Subject) -> Int[Tensor, "1 t"]:
        """Return the tokens of the picture chosen."""
        return encode(subject.tokenizer, self.image)

    def second_tokens(self, subject: Subject) -> Int[Tensor, "1 t"]:
        """Return the tokens of the second picture."""
        return encode(subject.tokenizer, self.images[self.second][None])

    def choose(self, number: int) -> Desk:
        """Return the desk with another picture chosen."""
        return replace(self, chosen=self._checked(number))

    def choose_second(self, number: int) -> Desk:
        """Return the desk with another second picture."""
        return replace(self, second=self._checked(number))

    def add(self, subject: Subject, paths: list[str]) -> Desk:
        """Return the desk with uploaded pictures, the first of which is chosen.

        Raises:
            InputError: If one cannot be taken; see :func:`read_uploads`.
        """
        if len(self.uploads) + len(paths) > MAX_FILES:
            raise InputError(
                f"{len(self.uploads)} and {len(paths)} more pictures are over {MAX_FILES}; load "
                f"the page again to start anew"
            )
        images = torch.cat([self.images, read_uploads(paths, subject.tokenizer)])
        uploads = (*self.uploads, *paths)
        return replace(self, images=images, uploads=uploads, chosen=len(self.images))

    def _checked(self, number: int) -> int:
        if not 0 <= number < len(self.images):
            raise InputError(f"picture {number} is not one of 0..{len(self.images) - 1}")
        return number


def make_desk(subject: Subject, before: Desk | None = None) -> Desk:
    """Return a desk for a model, with what was uploaded and chosen on the desk before.

    Args:
        subject: The model.
        before: The desk of another model.
    """
    desk = Desk(subject.name, subject.examples)
    if before is None:
        return desk
    if before.uploads:
        desk = desk.add(subject, list(before.uploads))
    return replace(desk, chosen=min(before.chosen, len(desk.images) - 1))
