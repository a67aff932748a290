"""What a plugin registers of the trained models in its package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectok.errors import PluginError, shown

KINDS = ("tokenizer", "prior", "pipeline")
"""What a trained model may be; a pipeline is a prior with all that it needs to draw images."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in the package of a plugin.

    Args:
        folder: What ``save_pretrained`` or, for a pipeline, ``spectok export`` wrote, with a card.
            A ``recipe.yaml`` in it says what the model was trained on.
        kind: One of ``"tokenizer"``, ``"prior"`` and ``"pipeline"``.

    Raises:
        PluginError: If the kind is none of these.
    """

    folder: Path
    kind: str = "tokenizer"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise PluginError(
                f"{shown(self.kind)} is no kind of trained model; give one of {', '.join(KINDS)}"
            )

    @classmethod
    def below(cls, root: Path) -> dict[str, TrainedModel]:
        """Return the models that lie below a folder as ``KINDs/NAME/DATA``.

        >>> TrainedModel.below(Path(__file__).parent)  # tokenizers/mine/digits -> "mine/digits"

        Args:
            root: Folder with the folders ``tokenizers``, ``priors`` and ``pipelines``, each of
                which may be missing.

        Returns:
            ``"NAME/DATA"`` -> model.
        """
        return {
            folder.relative_to(root / f"{kind}s").as_posix(): cls(folder, kind)
            for kind in KINDS
            for folder in sorted((root / f"{kind}s").glob("*/*"))
            if folder.is_dir()
        }
