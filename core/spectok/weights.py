"""Files of weights that somebody else may have written: what they claim, before they are believed.

Of a safetensors file only the header is read, whose names, shapes and types must be those of the
network. Nothing that would run code is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from spectok.errors import CheckpointError
from spectok.reading import check_regular, read_json

STEM, ENDING, INDEX = "diffusion_pytorch_model", "safetensors", "safetensors.index"
"""Parts of the names that diffusers gives to weight files and to their index."""
MAX_HEADER = 16 << 20
"""Bytes of the header of a safetensors file: 100,000 tensors."""
MAX_INFLATION = 4
"""How many times its packed size a file may claim to be. PyTorch packs without compression."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that a float weight may be saved in."""


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a file says of one tensor.

    Args:
        shape: Its shape.
        dtype: Its type; a string if PyTorch tensors are not loaded from it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())


# -- names -----------------------------------------------------------------------------------------


def weight_names(variant: str | None = None) -> str:
    """Return a regular expression of the names of a model's weight files and their index.

    Args:
        variant: As in ``save_pretrained``.
    """
    middle = re.escape(f".{variant}" if variant else "")
    indexes = map(re.escape, index_names(variant))
    return "|".join([rf"{STEM}{middle}(-\d+-of-\d+)?\.{ENDING}", *indexes])


def index_names(variant: str | None = None, stem: str = STEM) -> list[str]:
    """Return the names that the index of several weight files may have, the present one first."""
    if not variant:
        return [f"{stem}.{INDEX}.json"]
    return [f"{stem}.{INDEX}.{variant}.json", f"{stem}.{ENDING}.{variant}.index.json"]


def variants(folder: Path, stem: str = STEM) -> list[str]:
    """Return the variants that a folder has weights of, such as ``fp16``, sorted."""
    pattern = re.compile(rf"{re.escape(stem)}\.([^.]+?)(-\d+-of-\d+)?\.{ENDING}")
    matches = (pattern.fullmatch(path.name) for path in folder.glob(f"{stem}.*"))
    return sorted({match[1] for match in matches if match})


def find_weights(
    folder: Path,
    variant: str | None = None,
    stem: str = STEM,
    wanted: Callable[[str], bool] | None = None,
    *,
    exist: bool = True,
) -> list[Path]:
    """Return the weight files of a saved model: one, or those that its index lists.

    Args:
        folder: Where they are.
        variant: Part of their names, such as ``"fp16"``.
        stem: What their names begin with.
        wanted: Chooses tensors by name; only the listed files that hold one are returned.
        exist: Whether a missing file is an error. Otherwise the files to fetch are returned.

    Raises:
        CheckpointError: If there are none, a listed one is missing or outside the folder, or there
            are two answers.
    """
    single = folder / (f"{stem}.{variant}.{ENDING}" if variant else f"{stem}.{ENDING}")
    index, *earlier = (folder / name for name in index_names(variant, stem))
    found = [path for path in (single, index, *earlier) if path.exists()]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds {found[0].name} and {found[1].name}, of which one is left over from "
            f"an earlier save; remove that one"
        )
    if not found and not exist:
        return [single]
    if not found:
        there = variants(folder, stem)
        give = f"; it has the variant {there[0]}: give variant={there[0]!r}" if there else ""
        raise CheckpointError(
            f"cannot load {folder}: it has no {single.name}{give}, and pickles are not read; if "
            f"files are missing, copy or save it again"
        )
    if found[0] in earlier:
        raise CheckpointError(
            f"{found[0]} is an index in an earlier form; save the model again, or rename it to "
            f"{index.name}"
        )
    if found[0] == single:
        return [single]
    content = read_json(index, CheckpointError)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError(f"{index} lists no weights; copy or save the model again")
    names = sorted({file for name, file in table.items() if wanted is None or wanted(name)})
    if not names:
        raise CheckpointError(f"{index} lists none of the tokenizer's weights; copy it again")
    for name in names:
        if Path(name).name != name or not name.endswith(f".{ENDING}"):
            raise CheckpointError(f"{index} names {name!r}, which is no file of this folder")
        if exist and not (folder / name).exists():
            raise CheckpointError(f"{folder} has no {name}, which its index names; copy it again")
    return [folder / name for name in names]


# -- headers ---------------------------------------------------------------------------------------


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return what safetensors files say they hold, without reading it.

    Raises:
        CheckpointError: If a file is damaged, or two files hold a tensor of one name.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in _read_header(path).items():
            if name in found:
                raise CheckpointError(f"{path} holds {name}, as does another file; save it again")
            found[name] = tensor
    return found


def _read_header(path: Path) -> dict[str, StoredTensor]:
    check_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise CheckpointError(f"cannot load {path}: its header claims {length:,} bytes")
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(tuple(part.get_shape()), _read_dtype(str(part.get_dtype())))
                for name, part in parts.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load {path}: {reading_reason(error)}; copy or save it again"
        ) from error


def _read_dtype(name: str) -> torch.dtype | str:
    return DTYPES.get(name, name)


def check_fits(
    wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], place: str, kind: str
) -> None:
    """Check that files hold a network's tensors: all of them, no others, shapes and types alike.

    Args:
        wanted: State of the network, perhaps on the meta device.
        stored: What the headers say.
        place: Where they came from, for messages.
        kind: Name of the network's class.

    Raises:
        CheckpointError: Names the first tensors that do not fit.
    """
    problems = {
        "missing keys": [name for name in wanted if name not in stored],
        "unexpected keys": [name for name in stored if name not in wanted],
        "mismatched keys": [
            f"{name} of shape {stored[name].shape} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in stored and stored[name].shape != tuple(tensor.shape)
        ],
        "wrong types": [
            f"{name} of {_name(stored[name].dtype)} instead of {_name(tensor.dtype)}"
            for name, tensor in wanted.items()
            if name in stored and not _may_hold(stored[name].dtype, tensor.dtype)
        ],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            raise CheckpointError(
                f"{place} does not fit {kind}: {problem} ({len(names)}): {shown[:500]}"
            )


def main_dtype(stored: Mapping[str, StoredTensor], but: Iterable[str] = ()) -> torch.dtype:
    """Return the float type of most numbers in weight files; float32 if they hold no floats.

    Args:
        stored: What the headers say.
        but: Modules that do not count.
    """
    skipped, sizes = set(but), Counter()
    for name, tensor in stored.items():
        if tensor.dtype in FLOATS and not skipped & set(name.split(".")):
            sizes[tensor.dtype] += tensor.numel
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _may_hold(stored: torch.dtype | str, wanted: torch.dtype) -> bool:
    return stored == wanted or (wanted in FLOATS and stored in FLOATS)


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


# -- files of other projects -----------------------------------------------------------------------


def read_file(path: Path, remedy: str) -> Any:
    """Read what another project saved, without running any code that it holds.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save``.
        remedy: What to do where it cannot be read, for messages.

    Returns:
        What the file holds, which may be anything made of tensors and plain values.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds other objects.
    """
    check_regular(path, CheckpointError)
    try:
        if path.suffix == f".{ENDING}":
            return load_file(path)
        _check_inflation(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # every reader fails in its own ways
        raise CheckpointError(f"cannot read {path}: {reading_reason(error)}. {remedy}") from error


def named_tensors(found: Any) -> dict[str, Tensor]:
    """Return the tensors by name in what a file holds; none if it is no mapping."""
    items = found.items() if isinstance(found, Mapping) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _check_inflation(path: Path) -> None:
    """Refuse an archive that claims to be far larger than the file: PyTorch would believe it."""
    if not zipfile.is_zipfile(path):
        return  # the older format: a pickle, whose tensors must be in the file
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MAX_INFLATION * size:
        raise CheckpointError(f"{path} claims {claimed:,} bytes in a file of {size:,}")


# -- values ----------------------------------------------------------------------------------------


def check_finite(model: nn.Module, place: str) -> None:
    """Check that no weight and no saved buffer is infinite or NaN.

    Args:
        model: What was loaded.
        place: Where it came from, for messages.

    Raises:
        CheckpointError: Names the first tensor that is.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            bad = int(tensor.isfinite().logical_not().sum())
            raise CheckpointError(
                f"{place} is damaged: {bad} of {tensor.numel()} numbers of {name} are not finite "
                f"in {_name(tensor.dtype)}; copy it again, or train again"
            )


def fingerprint(kind: str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a model's class, options and weights.

    Args:
        kind: Name of its class.
        config: Its options, in plain JSON types.
        state: Its weights and saved buffers; every bit of them counts.
    """
    digest = hashlib.sha256(kind.encode())
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reading_reason(problem: BaseException) -> str:
    """Return why weights could not be read, on one line.

    PyTorch's own message about a pickle advises to read it unchecked; this one does not.
    """
    if isinstance(problem, pickle.UnpicklingError) or "weights_only" in str(problem):
        return (
            "it holds other Python objects than tensors, or is damaged; it is not unpickled, "
            "because that can run code"
        )
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0][:300]
