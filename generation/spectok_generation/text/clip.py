"""Train a small CLIP on captioned images, where no pretrained weights are at hand."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from spectok.data import build_dataset
from spectok.distributed import sum_over_ranks, world
from spectok.errors import ConfigError, DataError
from spectok.messages import say
from spectok.places import home
from spectok.saving import saving
from spectok.training import Callbacks, FitResult, Resume, Run, StepOutput, fit
from spectok.training.launch import accelerated, check_machine
from spectok.training.precision import settled_recipe
from spectok.training.resume import check_resume
from spectok_generation.text.clip_recipe import ClipConfig, ClipRecipe
from spectok_generation.text.encoder import CLIP_FILES, CONFIG, WEIGHTS

VOCABULARY = 49408  # of the BPE tokenizer that comes with open_clip
LARGEST_SCALE = math.log(100)


class Pairs(Dataset[dict[str, Any]]):
    """Captioned images, with their captions tokenized.

    Args:
        dataset: A :class:`spectok.data.ImageDataset` with captions.
        context_length: Maximum number of tokens of a caption.
    """

    def __init__(self, dataset: Any, context_length: int):
        self.dataset = dataset
        tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
        self._tokenize = functools.lru_cache(1 << 16)(lambda caption: tokenizer(caption)[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which seeds the augmentation."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = self.dataset[index]
        return {"images": item["images"], "tokens": self._tokenize(item["caption"])}


def train_clip(recipe: ClipRecipe, output: Path, *, resume: Resume = False) -> FitResult:
    """Train a CLIP from a recipe, in one process or in many.

    Writes ``model/``, which open_clip reads as ``local-dir:…``, ``recipe.yaml``, ``log.jsonl`` and
    ``checkpoints/``.

    Args:
        recipe: A validated recipe.
        output: Folder of the run.
        resume: True: continue from the newest checkpoint in the folder. ``"auto"``: continue, or
            begin where there is none.

    Raises:
        ConfigError: If the folder holds a finished run, or the sizes are inconsistent.
        DataError: If the images have no captions.
    """
    output = Path(home(output))
    if (output / "model" / CONFIG).is_file() and not resume:
        raise ConfigError(f"{output} holds a finished run; give another --output, or --resume")
    check_resume(output, resume)
    dataset = captioned_images(recipe)
    say(str(dataset.report))
    recipe = settled_recipe(recipe, output, resume)
    with accelerated(recipe.train, output):
        torch.manual_seed(recipe.seed)
        config = model_config(recipe.clip, dataset.image_shape)
        model = open_clip.CLIP(**config, output_dict=True)
        callbacks = Callbacks(
            after_step=lambda module, _: limit_scale(module),
            save_final=lambda module, folder: save_clip(module, config, folder),
        )
        run = Run(output, recipe.seed, resume, recipe.model_dump(mode="json", exclude={"output"}))
        pairs = Pairs(dataset, recipe.clip.context_length)
        return fit(model, pairs, contrastive_losses, recipe.train, run, callbacks=callbacks)


def rehearse_clip(recipe: ClipRecipe) -> int:
    """Check all that can be checked of a CLIP's training before something else is done first.

    Returns:
        The length of its text features.

    Raises:
        ConfigError: If the sizes are inconsistent, or do not suit this machine.
        DataError: If the images are missing, damaged, or have no captions.
    """
    check_machine(recipe.train)
    dataset = captioned_images(recipe)
    with torch.device("meta"):
        open_clip.CLIP(**model_config(recipe.clip, dataset.image_shape))
    return recipe.clip.embed_dim


def captioned_images(recipe: ClipRecipe) -> Any:
    """Return the data set of a recipe.

    Raises:
        DataError: If the images have no captions.
    """
    dataset = build_dataset(recipe.data, seed=recipe.seed, train=True)
    if not dataset.has_captions:
        raise DataError(
            f"data {recipe.data.name} has no captions; see docs/data.md for their forms"
        )
    return dataset


def model_config(sizes: ClipConfig, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the config that open_clip builds a CLIP from.

    Raises:
        ConfigError: If patches do not divide the images, or heads the widths.
    """
    channels, height, width = image_shape
    if channels != 3 or height != width or height % sizes.patch_size:
        raise ConfigError(
            f"clip.patch_size: {sizes.patch_size} does not fit images of shape {image_shape}; they "
            f"must be square with 3 channels and a side that is a multiple of it"
        )
    for name in ("image_width", "text_width"):
        if getattr(sizes, name) % sizes.head_width:
            raise ConfigError(
                f"clip.{name}: {getattr(sizes, name)} is no multiple of clip.head_width "
                f"{sizes.head_width}"
            )
    vision = {
        "image_size": height,
        "patch_size": sizes.patch_size,
        "layers": sizes.image_layers,
        "width": sizes.image_width,
        "head_width": sizes.head_width,
    }
    text = {
        "context_length": sizes.context_length,
        "vocab_size": VOCABULARY,
        "layers": sizes.text_layers,
        "width": sizes.text_width,
        "heads": sizes.text_width // sizes.head_width,
    }
    return {"embed_dim": sizes.embed_dim, "vision_cfg": vision, "text_cfg": text}


def contrastive_losses(model: nn.Module, batch: dict[str, Any]) -> StepOutput:
    """Return the symmetric contrastive loss of CLIP (Radford et al. 2021) over all processes.

    Images with identical captions count as matches of each other; if all captions differ, this is
    the usual InfoNCE.
    """
    output = model(batch["images"], batch["tokens"])
    images, texts = gather(output["image_features"]), gather(output["text_features"])
    loss, accuracy = info_nce(images, texts, gather(batch["tokens"]), output["logit_scale"])
    return StepOutput({"contrastive": loss}, {"matched": accuracy, "scale": output["logit_scale"]})


def info_nce(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "n d"],
    tokens: Int[Tensor, "n l"],
    scale: Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the loss, and the fraction of images whose nearest text is their own."""
    logits = scale * images.float() @ texts.float().T  # (n, n)
    same = (tokens[:, None] == tokens[None]).all(-1)
    targets = same / same.sum(1, keepdim=True)
    loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    matched = same.gather(1, logits.argmax(1, keepdim=True)).float().mean()
    return loss, matched


def gather(mine: Tensor) -> Tensor:
    """Return the rows of all processes; gradients flow to the rows of this process.

    Gradients are scaled by the number of processes, because data parallelism averages over them.
    """
    rank, size = world()
    if size == 1:
        return mine
    before, after = rank * len(mine), (rank + 1) * len(mine)
    everyone = mine.new_zeros(size * len(mine), *mine.shape[1:])
    everyone[before:after] = mine.detach()
    everyone = sum_over_ranks(everyone)[0]
    own = size * mine - (size - 1) * mine.detach()
    return torch.cat([everyone[:before], own, everyone[after:]])


@torch.no_grad()
def limit_scale(model: Any) -> None:
    """Keep the temperature above 0.01, as CLIP does."""
    model.logit_scale.clamp_(0, LARGEST_SCALE)


def save_clip(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Save a CLIP in the folder layout of open_clip.

    Raises:
        CheckpointError: If writing fails.
    """
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}  # images in [-1, 1]
    size = config["vision_cfg"]["image_size"]
    content = {"model_cfg": config, "preprocess_cfg": {"size": [size, size], **half}}
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    with saving(folder, CONFIG, CLIP_FILES) as temporary:
        save_file(state, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
