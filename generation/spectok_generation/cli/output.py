"""Where drawn images go: onto one picture, or into a folder of files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectok.cli.console import words_with
from spectok.errors import ConfigError
from spectok.loading import model_folder
from spectok.messages import count_images, note, progress, say

if TYPE_CHECKING:
    from spectok import ImageTokenizer
    from spectok_generation.priors import Prior
    from spectok_generation.sample_folder import Wanted
    from spectok_generation.text.encoder import TextEncoder


@dataclass(frozen=True)
class Output:
    """A picture to draw and write, as the commands take it.

    Args:
        out: What to write.
        batch_size: Images drawn at once.
        columns: Images per row. None: a square grid.
        compiled: Run the steps of the prior through ``torch.compile``.
    """

    out: Path
    batch_size: int
    columns: int | None
    compiled: bool

    def draw(
        self,
        prior: Prior,
        tokenizer: ImageTokenizer,
        wanted: Wanted,
        encoder: TextEncoder | None = None,
    ) -> None:
        """Draw the images, write the picture and say so."""
        from spectok.images import enlarge, save_grid
        from spectok_generation.drawing import draw_images

        if self.compiled:
            prior.compile_step()
        wanted.check(prior, encoder)
        with progress("sampling", wanted.num_images) as advance:
            images = draw_images(
                prior,
                tokenizer,
                wanted.num_images,
                wanted.condition(range(wanted.num_images), encoder),
                seed=wanted.seed,
                options=wanted.options,
                batch_size=self.batch_size,
                known=wanted.known,
                on_images=advance,
            )
        save_grid(enlarge(images), self.out, self.columns)
        say(f"{wanted.num_images} images: {self.out}")

    def next_command(self, model: str, wanted: Wanted, trust: bool) -> list[str]:
        """Return the command that draws the same with the next seed, into another picture.

        Args:
            model: The prior.
            wanted: What was drawn.
            trust: Whether ``--trust`` was given.
        """
        stem = self.out.stem.removesuffix(f"-{wanted.seed}")
        seed = str(wanted.seed + 1)
        return words_with({"--out": str(self.out.with_stem(f"{stem}-{seed}")), "--seed": seed})


class Folder(Output):
    """A folder to write a file for each image into."""

    def draw(
        self,
        prior: Prior,
        tokenizer: ImageTokenizer,
        wanted: Wanted,
        encoder: TextEncoder | None = None,
    ) -> None:
        """Draw the images that the folder lacks, write them and say so."""
        from spectok_generation.sample_folder import draw_to_folder

        if self.compiled:
            prior.compile_step()
        options = {"encoder": encoder, "batch_size": self.batch_size}
        try:
            with progress("sampling", wanted.num_images) as advance:
                manifest = draw_to_folder(
                    prior, tokenizer, self.out, wanted, **options, on_images=advance
                )
        except KeyboardInterrupt:
            note(f"what was drawn is in {self.out}; repeat the command to go on where it stopped")
            raise
        say(f"{count_images(wanted.num_images)}, each a file: {self.out}")
        say(f"what each shows and how it was drawn: {manifest}")

    def next_command(self, model: str, wanted: Wanted, trust: bool) -> list[str]:
        """Return the command that measures the prior; see :meth:`Output.next_command`."""
        from spectok.recipes.files import RUN_RECIPE

        number = ["--num-images", str(max(2, wanted.num_images))]
        place = Path(model_folder(model))
        runs = (place, place.absolute().parent)
        is_known = any((folder / RUN_RECIPE).is_file() for folder in runs)
        data = [] if is_known else ["--data", "DATA"]
        return ["spectok", "eval", model, *number, *data, *["--trust"] * trust]


def choose_output(out: str, batch_size: int, columns: int | None, compiled: bool) -> Output:
    """Return where images go: onto a picture if the name ends like one, or else into a folder.

    A slash at the end makes a folder of any name.

    Raises:
        ConfigError: If the name is neither a picture's nor a folder's, or it cannot be written.
        CheckpointError: If the folder holds something else.
    """
    from spectok.cli.models import PICTURES, check_picture

    place = Path(out)
    looks_like_a_file = place.suffix[1:].isalpha() and not place.is_dir()
    is_picture = place.suffix.lower() in PICTURES or looks_like_a_file
    if is_picture and not out.endswith(("/", os.sep)):
        check_picture(place)
        return Output(place, batch_size, columns, compiled)
    from spectok_generation.sample_folder import check_is_ours

    check_is_ours(place)
    if columns is not None:
        raise ConfigError(
            f"--columns {columns} lays out a picture, and --out {out} is a folder; leave one out, "
            "or give a picture such as grid.png"
        )
    return Folder(place, batch_size, columns, compiled)
