"""The image column of a parquet file or hub data set, decoded on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from spectok.data.decode import UnreadableImage
from spectok.errors import DataError

if TYPE_CHECKING:
    import datasets


class EncodedImages(Sequence[Any]):
    """The image column of a table, not yet decoded.

    Args:
        table: The table.
        column: A column of type ``Image``, or of encoded images, or of paths.
        places: Directories in which relative paths are looked up.

    Raises:
        DataError: If the column cannot be read as images.
    """

    def __init__(self, table: datasets.Dataset, column: str, places: Sequence[Path] = ()):
        import datasets as hf

        try:
            chosen = table.select_columns([column])
            self.table = chosen.cast_column(column, hf.Image(decode=False))
        except Exception as error:  # pyarrow and datasets share no base
            raise DataError(
                f"column {column!r} cannot be read as images ({root_cause(error)}); name another "
                "with data.image_column"
            ) from error
        self.column, self.places = column, places

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        try:
            image = self.table[index][self.column]
        except Exception as error:  # as above
            raise UnreadableImage(root_cause(error)) from error
        if image is None or image.get("bytes") or not image.get("path"):
            return image
        return {"bytes": None, "path": self._find(image["path"])}

    def _find(self, path: str) -> str:
        """Return where an image is: beside the table, below ``data.path``, or as it stands.

        A name with an accent may be spelt in two normal forms.
        """
        if not os.path.isabs(path):
            for place in self.places:
                for form in (path, normalize("NFC", path), normalize("NFD", path)):
                    if os.path.exists(candidate := os.path.join(place, form)):
                        return candidate
        return path

    def files(self) -> set[str]:
        """Return the files that rows without an encoded image point to."""
        found: set[str] = set()
        for chunk in self.table.data.column(self.column).chunks:
            bare = chunk.filter(chunk.field("bytes").is_null())
            paths = [path for path in bare.field("path").to_pylist() if path]
            found.update(os.path.abspath(self._find(path)) for path in paths)
        return found


def root_cause(error: BaseException) -> str:
    """Return the first error of a chain, on one line and cut to a readable length."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "…"
