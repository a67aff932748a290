"""Load a trained prior together with its tokenizer and its text encoder.

A prior stores the fingerprints of both; any other tokenizer or text encoder is refused.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from spectok import ImageTokenizer
from spectok.errors import CheckpointError, InputError
from spectok.loading import load_trained
from spectok.places import may_be_hub_id
from spectok_generation.drawing import DRAWABLE
from spectok_generation.folders import is_pipeline, prior_folder
from spectok_generation.pipeline_folder import load_component
from spectok_generation.priors import Prior, load_prior
from spectok_generation.records import (
    check_record,
    describe_record,
    same_tokenizer,
    tokenizer_record,
)
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.encoder_loading import load_text_encoder

OWN_TOKENIZER, OWN_CLIP = Path("tokenizer", "model"), Path("clip", "model")
"""Where a run keeps the tokenizer, or the CLIP, that it trained itself."""


def load_pair(
    prior_path: str | os.PathLike[str],
    tokenizer_path: str | os.PathLike[str] | None = None,
    *,
    subfolder: str | None = None,
    trust: bool = False,
) -> tuple[Any, ImageTokenizer]:
    """Load a trained prior and its tokenizer, in eval mode.

    The prior is an :class:`AutoregressivePrior` or an :class:`LDM`, for :func:`draw_images`.

    Args:
        prior_path: Folder of a saved prior, of its run, or of a pipeline, or the name of a trained
            model that is installed.
        tokenizer_path: Its tokenizer. None: the one in the pipeline, or the one recorded when the
            prior was trained.
        subfolder: Folder inside ``tokenizer_path`` that holds it.
        trust: See :func:`~spectok_generation.pipeline_folder.load_component`.

    Raises:
        CheckpointError: If one of them is missing, or they do not belong together.
        InputError: If images cannot be drawn from this kind of prior.
    """
    folder = prior_folder(prior_path)
    whole = is_pipeline(folder)
    load = functools.partial(load_component, folder, trust=trust)
    prior: Any = load("prior") if whole else load_prior(folder, trust=trust)
    if not isinstance(prior, DRAWABLE):
        kinds = " or ".join(kind.__name__ for kind in DRAWABLE)
        raise InputError(
            f"{prior_path} holds a {type(prior).__name__}, from which images cannot be drawn; give "
            f"an {kinds}"
        )
    if whole and tokenizer_path is None:
        where, tokenizer = str(folder / "tokenizer"), load("tokenizer")
    else:
        where = tokenizer_path
        if where is None:
            where, subfolder = _recorded_place(prior, folder)
        where = os.fspath(where)
        tokenizer = load_trained(where, subfolder=subfolder, trust=trust)
    check_pair(prior, tokenizer, where)
    return prior, tokenizer


def load_encoder(
    prior: Prior,
    prior_path: str | os.PathLike[str],
    name: str | None = None,
    pretrained: str | None = None,
    *,
    trust: bool = False,
) -> TextEncoder:
    """Load the text encoder that a prior was trained with.

    Args:
        prior: A trained prior that reads text.
        prior_path: Where it was loaded from: a folder or a name.
        name: Folder or name of the encoder. None: the one in the pipeline, or the one recorded
            when the prior was trained.
        pretrained: With a name: tag or file of its weights.
        trust: See :func:`load_text_encoder`.

    Raises:
        InputError: If the prior reads no text.
        CheckpointError: If the encoder is missing, or is not the one the prior was trained with.
    """
    if not prior.text_width:
        raise InputError(f"{prior_path} holds a prior that reads no text; see 'spectok sample'")
    folder = prior_folder(prior_path)
    if name is None and is_pipeline(folder):
        encoder = load_component(folder, "text_encoder", trust=trust)
    elif name is None:
        needed = check_record(prior.config["text"], f"text of {prior_path}")
        own, recorded = run_of(folder) / OWN_CLIP, needed.get("path")
        places = [own, Path(recorded)] if recorded else [own]
        found = next((place for place in places if os.path.isdir(place)), recorded)
        if not found:
            raise CheckpointError(
                f"{prior_path} does not record its text encoder; give it with --text"
            )
        encoder = load_text_encoder(str(found), needed.get("pretrained"), trust=trust)
    else:
        encoder = load_text_encoder(name, pretrained, trust=trust)
    check_encoder(prior, encoder)
    return encoder


def check_pair(prior: Prior, tokenizer: ImageTokenizer, where: str | None = None) -> None:
    """Check that a tokenizer is the one whose tokens a prior learned.

    Args:
        prior: A trained prior.
        tokenizer: The tokenizer to decode with.
        where: Its path, for the message.

    Raises:
        CheckpointError: If not; names the tokenizer given and the one needed.
    """
    given, needed = tokenizer_record(tokenizer, where), prior.tokenizer_record
    if needed and not same_tokenizer(given, needed):
        raise CheckpointError(
            f"this prior models the tokens of {describe_record(needed)}, not those of "
            f"{describe_record(given)}; give the tokenizer it was trained with"
        )
    for key in ("image_shape", "latent_shape"):
        if key in needed and needed[key] != given[key]:
            raise CheckpointError(
                f"this prior is recorded for a tokenizer of {key} {needed[key]}, not {given[key]}; "
                f"give the tokenizer it was trained with"
            )
    if prior.token_spec != tokenizer.token_spec:
        raise CheckpointError(
            f"this prior models {prior.token_spec.num_tokens} tokens laid out differently from the "
            f"{tokenizer.token_spec.num_tokens} of {describe_record(given)}"
        )


def check_encoder(prior: Prior, encoder: TextEncoder | None) -> None:
    """Check that a text encoder is the one whose features a prior learned to read.

    Args:
        prior: A trained prior.
        encoder: Encoder of the prompts; None for a prior that reads no text.

    Raises:
        CheckpointError: If not; names the encoder given and the one needed.
        InputError: If the prior reads text and no encoder is given, or the reverse.
    """
    kind = type(prior).__name__
    if encoder is None and prior.text_width:
        raise InputError(f"this {kind} reads text; give the text encoder it was trained with")
    if encoder is None:
        return
    if not prior.text_width:
        raise InputError(f"this {kind} reads no text; leave the text encoder out")
    needed = check_record(prior.config["text"], "text of the prior's config")
    if encoder.fingerprint != needed.get("fingerprint"):
        raise CheckpointError(
            f"this prior reads the features of {describe_record(needed)}, not those of "
            f"{describe_record(encoder.record)}; give the encoder it was trained with"
        )


def run_of(prior_path: Path) -> Path:
    """Return the folder of a prior's run; what the run made itself is taken before what it names.

    A run that was copied names the places of the first one.
    """
    return prior_path.parent if prior_path.name == "model" else prior_path


def _recorded_place(prior: Prior, prior_path: Path) -> tuple[Path, str | None]:
    """Return where the tokenizer of a prior is, and the folder inside it, if one was given."""
    record: dict[str, Any] = prior.tokenizer_record
    recorded, own = Path(record["path"]) if record.get("path") else None, run_of(prior_path)
    if os.path.isdir(own / OWN_TOKENIZER):
        return own / OWN_TOKENIZER, None
    if recorded is not None and (os.path.isdir(recorded) or may_be_hub_id(record["path"])):
        return recorded, record.get("subfolder")  # a folder, or a hub id
    raise CheckpointError(
        f"the tokenizer of this prior is not at {recorded or 'any recorded place'}; give it with "
        f"--tokenizer"
    )
