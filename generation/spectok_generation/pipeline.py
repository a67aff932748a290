"""``TokenPipeline``: tokenizer, prior and text encoder as one diffusers pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import __version__ as diffusers_version
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.constants import CONFIG_NAME

from spectok import ImageTokenizer
from spectok.errors import CheckpointError, ConfigError, InputError, shown
from spectok.hub import download
from spectok.images import to_pil
from spectok.loading import not_there
from spectok.modeling import DTYPE_NAMES, find_device, take_dtype
from spectok.places import home, may_be_hub_id
from spectok.saving import HUB_OPTIONS, resolve, saving, was_cut_short
from spectok.trained.names import find_model, similar_model
from spectok_generation.conditions import Condition
from spectok_generation.drawing import DRAWABLE, choose_labels, draw_images, make_options
from spectok_generation.folders import INDEX
from spectok_generation.guidance import TEXT_GUIDANCE
from spectok_generation.pairs import check_encoder, check_pair, load_encoder, load_pair
from spectok_generation.pipeline_folder import load_component
from spectok_generation.priors import Prior
from spectok_generation.records import PLACES, RECORDS
from spectok_generation.seeds import Seed, seed_from
from spectok_generation.sharing import is_count
from spectok_generation.text.encoder import TextEncoder

COMPONENTS = ("tokenizer", "prior", "text_encoder")
ENDINGS = (".json", ".safetensors", ".txt", ".model")
"""Endings of the files fetched from the hub: weights, configs and text tokenizers."""
OUTPUT_TYPES: dict[str, Any] = {
    "pil": lambda images: [to_pil(image) for image in images],
    "np": lambda images: (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(),
    "pt": lambda images: images,
}
"""What images may be returned as, each from a batch (N, C, H, W), about [-1, 1]."""
USUAL = {"safe_serialization": True, "variant": None, "push_to_hub": False}
"""Options of ``save_pretrained`` in diffusers, with the only values accepted here."""


class TokenPipeline(DiffusionPipeline):
    """Draws images: a tokenizer, a prior of its tokens and, for prompts, a text encoder.

        prompt ── text_encoder ──┐
        class_labels ────────── prior ── tokens or latents ── tokenizer ── images

    It is saved as one folder, loaded from one, and pushed to the hub like any diffusers pipeline.
    Loading is strict: every part must be complete and fit the others.

    Args:
        tokenizer: A trained tokenizer; it is put into eval mode.
        prior: A trained prior of its tokens or latents; it is put into eval mode.
        text_encoder: Encoder of the prompts; None for a prior that reads no text.

    Raises:
        CheckpointError: If they do not belong together.
        InputError: If one has the wrong type.
    """

    config_name = INDEX
    _optional_components = ["text_encoder"]  # noqa: RUF012 - the name diffusers reads

    tokenizer: ImageTokenizer
    prior: Any
    text_encoder: TextEncoder | None

    def __init__(
        self, tokenizer: ImageTokenizer, prior: Prior, text_encoder: TextEncoder | None = None
    ):
        super().__init__()
        for name, part, kinds in [
            ("tokenizer", tokenizer, ImageTokenizer),
            ("prior", prior, DRAWABLE),
            ("text_encoder", text_encoder, TextEncoder | None),
        ]:
            if not isinstance(part, kinds):
                raise InputError(f"{name}: a {type(part).__name__} cannot be the {name} here")
        check_pair(prior, tokenizer)
        check_encoder(prior, text_encoder)
        self.register_modules(tokenizer=tokenizer.eval(), prior=prior.eval())
        self.register_modules(text_encoder=text_encoder)

    @classmethod
    def from_run(
        cls,
        prior_path: str | os.PathLike[str],
        tokenizer_path: str | os.PathLike[str] | None = None,
        text_encoder: str | None = None,
        *,
        subfolder: str | None = None,
        trust: bool = False,
    ) -> TokenPipeline:
        """Build a pipeline from what a run trained.

        Args:
            prior_path: Folder of the prior or of its run.
            tokenizer_path: Its tokenizer. None: the one it was trained with.
            text_encoder: Folder or name of its text encoder. None: the one it was trained with.
            subfolder: Folder inside ``tokenizer_path`` that holds it.
            trust: See :meth:`from_pretrained`.

        Raises:
            CheckpointError: If one is missing, or they do not belong together.
            InputError: If a text encoder is given for a prior that reads no text.
        """
        prior, tokenizer = load_pair(prior_path, tokenizer_path, subfolder=subfolder, trust=trust)
        if not prior.text_width and text_encoder is None:
            return cls(tokenizer, prior)
        encoder = load_encoder(prior, prior_path, text_encoder, trust=trust)
        return cls(tokenizer, prior, encoder)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, trust: bool = False, **kwargs: Any
    ) -> Any:
        """Load a saved pipeline. Nothing that the folder names is imported, unless it is trusted.

        Args:
            pretrained_model_name_or_path: Its folder, or a hub id.
            trust: Whether the folder may name classes that no plugin registers, whose modules are
                then imported, bring a tokenizer that runs its own code, and ask for larger
                networks than its weights suggest.
            **kwargs: ``tokenizer``, ``prior`` or ``text_encoder`` to replace the saved part;
                ``torch_dtype`` or ``dtype``, the type of tokenizer and prior, which are checked in
                float32 before; ``device_map``, one device for all parts; for a hub id also
                ``revision``, ``token``, ``cache_dir`` and the like.

        Raises:
            CheckpointError: If a part is missing or damaged, or they do not belong together.
            ConfigError: If an option is unknown.
        """
        parts = {name: kwargs.pop(name) for name in COMPONENTS if kwargs.get(name) is not None}
        dtype = take_dtype(kwargs, torch.float32)
        device = find_device(kwargs.pop("device_map", None))
        if unknown := sorted(set(kwargs) - {*HUB_OPTIONS}):
            known = (*COMPONENTS, *HUB_OPTIONS, *DTYPE_NAMES, "device_map", "trust")
            raise ConfigError(
                f"loading a pipeline does not take {', '.join(unknown)}, only {', '.join(known)}"
            )
        folder = _find_folder(pretrained_model_name_or_path, kwargs)
        for name in COMPONENTS:
            needed = name != "text_encoder" or getattr(parts["prior"], "text_width", 0)
            if name not in parts and needed:
                parts[name] = load_component(folder, name, trust=trust)
        pipeline = cls(**parts)
        if dtype is not None:
            for part in (pipeline.tokenizer, pipeline.prior):
                part.to(dtype)
        return pipeline if device is None else pipeline.to(device)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save all parts into one folder: all of it, or nothing.

        They are written first and then moved into place, so that a full disk does not destroy an
        earlier pipeline.

        Raises:
            CheckpointError: If the folder holds something else, parts do not belong together, or
                writing fails.
            ConfigError: If an option asks for another format.
            InputError: If a part is not in float32.
        """
        target = resolve(Path(save_directory).expanduser())
        self._check_can_save(target, kwargs)
        index: dict[str, Any] = {"_class_name": type(self).__name__}
        index["_diffusers_version"] = diffusers_version
        with saving(target, INDEX, "|".join(COMPONENTS)) as temporary:
            for name, part in self.components.items():
                # not what diffusers would register: it mistakes some modules for its own by name
                kind = type(part)
                index[name] = [None, None] if part is None else [kind.__module__, kind.__name__]
                if part is not None:
                    part.save_pretrained(temporary / name)
            forget_folders(temporary / "prior" / CONFIG_NAME)
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: int | Sequence[int] | None = None,
        num_images: int | None = None,
        *,
        num_images_per_prompt: int | None = None,
        seed: Seed | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        guidance: float | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        **options: Any,
    ) -> ImagePipelineOutput:
        """Draw the same images as ``spectok sample`` and ``spectok text-to-image``.

        Args:
            prompt: A text that the images show, or several texts, taken in turn.
            class_labels: Class of the images, or several, taken in turn. None: all, in turn.
            num_images: How many. None: one for each prompt or class given.
            num_images_per_prompt: Instead: how many of each prompt or class, one after another.
            seed: The only source of randomness, together with the number of the image; or one seed
                for each image. None: 0.
            generator: Instead: what a seed is drawn from; of a list, one for each image.
            guidance: Scale of classifier-free guidance. None: 3 for prompts, otherwise 1.
            batch_size: Images drawn at once.
            output_type: ``"pil"``; ``"np"`` for float32 (N, H, W, C) in [0, 1], as pipelines of
                diffusers return it; ``"pt"`` for a tensor (N, C, H, W) as the tokenizer decodes
                it, about [-1, 1] (not clamped).
            **options: Of :class:`SamplingOptions`; for a masked prior, of :class:`MaskedOptions`;
                for an LDM, of :class:`DiffusionOptions`.

        Raises:
            InputError: If an argument does not fit the prior, or is out of range.
        """
        for name, value in (
            ("num_images", num_images),
            ("num_images_per_prompt", num_images_per_prompt),
        ):
            if value is not None and not is_count(value):
                raise InputError(f"{name} {shown(value)} must be a whole number, at least 1")
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r} is not known; take 'pil', 'np' or 'pt'")
        if seed is not None and generator is not None:
            raise InputError(f"seed {seed} and a generator are given; give one of them")
        if guidance is None and prompt is not None:
            guidance = TEXT_GUIDANCE
        how = make_options(self.prior, {"guidance": guidance, **options})
        count, condition = self._make_condition(
            prompt, class_labels, num_images, num_images_per_prompt
        )
        default = 0 if seed is None else seed
        chosen = default if generator is None else seed_from(generator, count)
        pair = (self.prior, self.tokenizer)
        with cast(Any, self).progress_bar(total=count) as bar:
            given = {"seed": chosen, "options": how, "batch_size": batch_size}
            images = draw_images(*pair, count, condition, **given, on_images=bar.update)
        return ImagePipelineOutput(images=OUTPUT_TYPES[output_type](images))

    def _make_condition(
        self, prompt: Any, class_labels: Any, num_images: int | None, per_prompt: int | None
    ) -> tuple[int, Condition | None]:
        """Return how many images to draw, and the class or text of each."""
        kind = type(self.prior).__name__
        if class_labels is not None and self.text_encoder is not None:
            raise InputError(f"this {kind} reads text, not classes; give prompt, no class_labels")
        if prompt is not None and self.text_encoder is None:
            instead = "give class_labels instead" if self.prior.num_classes else "leave it out"
            raise InputError(f"this {kind} reads no text such as the prompt {prompt!r}; {instead}")
        if per_prompt is not None and num_images is not None:
            raise InputError(
                f"num_images {num_images} and num_images_per_prompt {per_prompt} are given; give "
                f"one of them"
            )
        if prompt is None and class_labels is None:
            count = _count(per_prompt if num_images is None else num_images, 1)
            return count, choose_labels(self.prior, count)
        if self.text_encoder is not None:
            chosen: Any = self.text_encoder(_as_list("prompt", prompt, str))
        else:
            labels = _as_list("class_labels", class_labels, int)
            chosen = torch.cat([cast(Any, choose_labels(self.prior, 1, n)) for n in labels])
        if per_prompt is not None:
            rows = [row for row in range(len(chosen)) for _ in range(per_prompt)]
            return len(rows), chosen[rows]
        count = _count(num_images, len(chosen))
        return count, chosen[[number % len(chosen) for number in range(count)]]

    def _check_can_save(self, target: Path, options: dict[str, Any]) -> None:
        for name, value in options.items():
            if name not in USUAL or value != USUAL[name]:
                raise ConfigError(
                    f"a pipeline cannot be saved with {name}={value}: it is saved as float32 "
                    f"safetensors; leave it out, and upload with push_to_hub(repo_id)"
                )
        held = [name for name in (*COMPONENTS, "model") if (target / name).exists()]
        foreign = held and not (target / INDEX).is_file() and not was_cut_short(target)
        if target.is_file() or foreign:
            what = f"holds a {held[0]} of something else" if held else "is a file"
            raise CheckpointError(
                f"{target} {what}; give a new folder, or the folder of a pipeline"
            )
        self._check_float32()
        check_pair(self.prior, self.tokenizer)
        check_encoder(self.prior, self.text_encoder)

    def _check_float32(self) -> None:
        for name, part in self.components.items():
            if part is not None and part.dtype != torch.float32:
                raise InputError(
                    f"the {name} was cast to {part.dtype}, but parts are saved in float32; load "
                    f"the pipeline again"
                )


def _find_folder(place: Any, options: dict[str, Any]) -> Path:
    """Return the folder of a pipeline; a hub id is downloaded first."""
    name = os.fspath(place)
    if (inside := find_model(name, ("pipeline",))) is not None:
        return inside
    if os.path.isdir(home(name)):
        return Path(home(name))
    if not may_be_hub_id(name):
        raise CheckpointError(f"{not_there(name)}; give the folder of a pipeline, or a hub id")
    wanted = [INDEX, *(f"{part}/*{ending}" for part in COMPONENTS for ending in ENDINGS)]
    try:
        return download(name, wanted, options)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{similar_model(name)}") from error


def forget_folders(config: Path) -> None:
    """Remove the paths of this machine from the config of a saved prior."""
    content = json.loads(config.read_text(encoding="utf-8"))
    for record in filter(None, (content.get(name) for name in RECORDS)):
        for key in PLACES:
            if Path(record.get(key) or "").is_absolute():
                record[key] = None
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_list(name: str, value: Any, kind: type) -> list[Any]:
    """Return a value, or several, as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    values = [value] if isinstance(value, kind) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
        raise InputError(
            f"{name} {value!r} must be of type {kind.__name__}, or a list of that type"
        )
    if not values:
        raise InputError(f"{name} is an empty list; give at least one")
    return list(values)


def _count(wanted: int | None, given: int) -> int:
    """Return how many images to draw for a number of prompts or classes."""
    count = given if wanted is None else wanted
    if count < given:
        raise InputError(f"num_images {count} must be at least {given}, or leave it out")
    return count
