"""``spectok encode`` and ``spectok decode``: images to a file of integers, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.console import (
    BATCH_SIZE,
    batches,
    count_images,
    find_images,
    load_trained,
    note_resizing,
    progress,
    say,
    say_next,
)
from spectok.cli.models import Images, Model, NumTokens
from spectok.errors import ConfigError, DataError, TokenError

if TYPE_CHECKING:
    import numpy as np

    from spectok.token_spec import TokenSpec

FORMATS = (".npz", ".json")


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok encode`` and ``spectok decode``."""
    app.command("encode")(encode)
    app.command("decode")(decode)


def encode(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help="File of tokens to write: .npz or .json.")],
) -> None:
    """Turn images into tokens."""
    import torch

    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out} does not end in .npz or .json")
    files = find_images(images)
    tokenizer = load_trained(model)
    note_resizing(files, tokenizer.image_shape)
    parts = [tokenizer.encode(batch).cpu() for batch in batches(files, tokenizer, "encoding")]
    spec = tokenizer.token_spec
    write_tokens(out, torch.cat(parts).numpy(), [str(file) for file in files], spec)
    size = f"{spec.num_tokens} tokens and {spec.bits_per_image:,.0f} bits each"
    say(f"{count_images(len(files))}, {size}: {out}")
    say_next(["spectok", "decode", model, str(out), "--out", "decoded"])


def decode(
    model: Model,
    tokens: Annotated[Path, typer.Argument(help="File of tokens that 'spectok encode' wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the images.")],
    num_tokens: NumTokens = None,
) -> None:
    """Turn tokens into images."""
    import torch

    from spectok.images import to_pil

    tokenizer = load_trained(model)
    indices, names = read_tokens(tokens, tokenizer.token_spec)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.png" for name in distinct_stems(names)]
    with torch.no_grad(), progress("decoding", len(files)) as advance:
        for start in range(0, len(files), BATCH_SIZE):
            batch = torch.from_numpy(indices[start : start + BATCH_SIZE]).to(tokenizer.device)
            for image, file in zip(tokenizer.decode(batch, num_tokens), files[start:]):
                to_pil(image.float().cpu()).save(file)
            advance(len(batch))
    say(f"{count_images(len(files))}: {out}")
    say_next(["spectok", "reconstruct", model, str(files[0]), "--out", "again.png"])


def write_tokens(path: Path, indices: np.ndarray, names: list[str], spec: TokenSpec) -> None:
    """Write indices with the names of their images and the layout they follow.

    Args:
        path: A ``.npz`` or ``.json`` file.
        indices: int64, shape (N, T).
        names: File of each image.
        spec: Layout of the T tokens.
    """
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        layout = json.dumps(spec.to_dict())
        np.savez_compressed(path, indices=indices, files=np.array(names), token_spec=layout)
        return
    content = {"token_spec": spec.to_dict(), "files": names, "indices": indices.tolist()}
    path.write_text(json.dumps(content), encoding="utf-8")


def read_tokens(path: Path, spec: TokenSpec) -> tuple[np.ndarray, list[str]]:
    """Read what :func:`write_tokens` wrote, and check it against a tokenizer's layout.

    Returns:
        Indices (N, T) as int64, and the name of each image.

    Raises:
        DataError: If the file is missing, damaged or something else.
        TokenError: If the tokens follow another layout, or are out of range.
    """
    import numpy as np
    import torch

    from spectok.token_spec import TokenSpec

    content = _read_npz(path) if path.suffix == ".npz" else _read_json(path)
    try:
        indices = np.asarray(content["indices"])
        names = [str(name) for name in content["files"]]
        written = TokenSpec.from_dict(content["token_spec"])
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise DataError(
            f"{path} is not a file of tokens ({error}); 'spectok encode' writes one"
        ) from error
    if written != spec:
        raise TokenError(
            f"{path} holds tokens of another layout ({_summary(written)}) than this tokenizer's "
            f"({_summary(spec)}); use the tokenizer that wrote them"
        )
    if indices.ndim != 2 or indices.dtype.kind not in "iu" or len(indices) != len(names):
        raise DataError(
            f"{path}: indices of shape {indices.shape} and type {indices.dtype} do not fit "
            f"{len(names)} files; they must be integers of shape ({len(names)}, {spec.num_tokens})"
        )
    indices = indices.astype(np.int64)
    spec.validate(torch.from_numpy(indices))
    return indices, names


def distinct_stems(names: list[str]) -> list[str]:
    """Return a file stem for each image: its own name, numbered where two are alike."""
    counts: dict[str, int] = {}
    stems = []
    for stem in (Path(name).stem for name in names):
        counts[stem] = counts.get(stem, 0) + 1
        stems.append(stem if counts[stem] == 1 else f"{stem}-{counts[stem]}")
    return stems


def _read_npz(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            content = dict(archive)
        return content | {"token_spec": json.loads(str(content["token_spec"]))}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; 'spectok encode' writes such a file") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a file of tokens: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; 'spectok encode' writes such a file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a file of tokens: {error}") from error


def _summary(spec: TokenSpec) -> str:
    return f"{spec.num_tokens} tokens of up to {spec.max_vocab_size} values in {spec.order} order"
