"""Hand damaged input to one reader, and print what it did that it must not do.

    python worker.py TARGET,… FIRST COUNT

A case is a function of its number. It may succeed, or raise a :class:`spectok.errors.SpectokError`
whose message is short; it may not raise anything else, take over 10 s, or take over 200 MB. One
JSON line is printed per fault, and one with the total at the end. It runs as a program of its own,
so that memory is measured from a known start, and without the type checks that the tests add.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spectok import TokenSpec
from spectok.errors import SpectokError
from spectok.reading import parse_json
from spectok.recipes.files import builtin_folder
from spectok.token_spec import Level

SECONDS, MEGABYTES, LONGEST = 10, 200, 20_000
SAVED = Path(__file__).parents[1] / "fixtures" / "saved_by_0_1"


class TooSlow(BaseException):
    """A case ran for longer than it may."""


# -- damage ---------------------------------------------------------------------------------------


def nested(depth: int, form: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = form(value)
    return value


def odd_value(rng: random.Random) -> Any:
    return rng.choice(
        [
            *(None, True, False, 0, 1, -1, 2, 3, 7, 16, 64, 2**31, 2**62, 2**63, 10**30, 10**12),
            *(0.5, -0.0, 1e300, 1e15, math.inf, -math.inf, math.nan, 4.0),
            *("", "x", "inf", "nan", "1", "shared", "path", "position", "tokens", "levels"),
            *("\0", "a\nerror: b", "\x1b[2J", "é", "../..", "/dev/zero", "x" * 3000, "\ud800"),
            *([], {}, [[]], [1, 2, 3], [0], ["x"], {"name": "x"}, {"": 1}, [None], [1.5], [True]),
            *([0] * 2000, nested(50, lambda v: [v]), nested(150, lambda v: {"a": v})),
        ]
    )


def damage_value(value: Any, rng: random.Random) -> Any:
    """Replace, remove, repeat or add one part of nested lists and mappings."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        damaged = dict(value)
        what = rng.random()
        if what < 0.1:
            del damaged[key]
        elif what < 0.2:
            damaged[str(odd_value(rng))] = value[key]
        else:
            damaged[key] = damage_value(value[key], rng)
        return damaged
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        damaged, what = list(value), rng.random()
        if what < 0.1:
            del damaged[place]
        elif what < 0.2:
            damaged *= rng.choice([2, 5, 50])
        else:
            damaged[place] = damage_value(value[place], rng)
        return damaged
    return odd_value(rng)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, zero or insert a few bytes."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        place = rng.randrange(len(damaged) + 1)
        end = place + rng.choice([1, 2, 4, 8, 100])
        what = rng.randrange(7)
        if what == 0:
            damaged[place:place] = rng.randbytes(rng.choice([1, 4, 30]))
        elif what == 1:
            del damaged[place:end]
        elif what == 2:
            damaged[place:end] = bytes(len(damaged[place:end]))
        elif what == 3:
            damaged[place:end] = b"\xff" * len(damaged[place:end])
        elif what == 4:
            damaged[place:place] = damaged[place:end] * rng.choice([1, 3, 50])
        elif what == 5 and rng.random() < 0.2:
            del damaged[place:]
        elif place < len(damaged):
            damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged)


MARKS = [
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        '"',
        "'",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!!int ",
        "!!float ",
        "!!x ",
    ),
    *("\n", "\n  ", "\t", "#", "|", ">", "%YAML 1.2\n", "---\n", "...\n", "<<: *a", "\0", "\ufeff"),
    *("1" * 5000, "1e400", ".nan", "-.inf", "NaN", "null", "true", "0x1f", "\\u0000", "\\ud800"),
    *("[" * 300, "{a: " * 300, "- " * 300, "é", "\x85", "\u2028", "\udcff", "=", ".", "x" * 3000),
]


def damage_text(text: str, rng: random.Random) -> str:
    """Insert, cut and repeat a few pieces of a text."""
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        place = rng.randrange(len(text) + 1)
        end = min(len(text), place + rng.choice([1, 2, 10, 60]))
        what = rng.randrange(4)
        if what == 0:
            text = text[:place] + text[end:]
        elif what == 1:
            text = text[:place] + text[place:end] * rng.choice([2, 3, 20]) + text[end:]
        else:
            text = text[:place] + rng.choice(MARKS) + text[place:]
    return text


def damaged_json(value: Any, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = damage_value(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.3:
        text = damage_text(text, rng)
    content = text.encode("utf-8", "surrogatepass")
    return damage_bytes(content, rng) if rng.random() < 0.1 else content


# -- targets: each makes a function that hands over one case --------------------------------------

Case = Callable[[random.Random], None]
SPEC = TokenSpec((Level((2, 2), 12), Level((2, 2), 5, "path")), order="position", prefix="tokens")


def token_spec(folder: Path) -> Case:
    def case(rng: random.Random) -> None:
        text = damaged_json(SPEC.to_dict(), rng).decode("utf-8", "replace")
        spec = TokenSpec.from_dict(parse_json(text, "case", SpectokError))
        assert 0 < spec.num_tokens <= 1 << 20
        assert spec.bits_per_image >= 0

    return case


def recipe(folder: Path) -> Case:
    from spectok.training.recipe import load_tokenizer_recipe

    files = sorted(builtin_folder().glob("tokenizers/*/digits.yaml"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    path = folder / "recipe.yaml"

    def case(rng: random.Random) -> None:
        text = damage_text(rng.choice(texts), rng)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        load_tokenizer_recipe(str(path))

    return case


def prior_recipe(folder: Path) -> Case:
    from spectok_generation.prior_recipe import load_prior_recipe

    files = sorted(builtin_folder().glob("generation/*/digits.yaml"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    path = folder / "recipe.yaml"

    def case(rng: random.Random) -> None:
        text = damage_text(rng.choice(texts), rng)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        load_prior_recipe(str(path))

    return case


KEYS = [
    *("train.steps", "train.learning_rate", "train.betas", "train.batch_size", "seed", "output"),
    *("tokenizer.name", "tokenizer.image_size", "tokenizer.codebook_size", "tokenizer.quantizer"),
    *("tokenizer.quantizer.name", "tokenizer.quantizer.decay", "data.name", "data.path", "data"),
    *("data.image_size", "data.limit", "losses", "adversarial", "adversarial.discriminator"),
    *("train", "tokenizer", "a.b.c.d", "", ".", "init_from", "losses.perceptual", "data.split"),
]


def override(folder: Path) -> Case:
    from spectok.recipes.yaml12 import dump_yaml
    from spectok.training.recipe import load_tokenizer_recipe

    def case(rng: random.Random) -> None:
        words = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = odd_value(rng)
            text = dump_yaml(value) if rng.random() < 0.3 else json.dumps(value)
            word = f"{rng.choice(KEYS)}={text}"
            words.append(damage_text(word, rng) if rng.random() < 0.3 else word)
        load_tokenizer_recipe(rng.choice(["vqvae", "qgvae", "hrvqvae", "favae"]), words)

    return case


def damaged_npz(arrays: dict[str, Any], rng: random.Random) -> bytes:
    """Damage an archive's bytes, or write one whose arrays are not as they should be."""
    if rng.random() < 0.5:
        name = rng.choice(list(arrays))
        odd = odd_value(rng)
        try:
            arrays = arrays | {name: np.array(odd)}
        except (ValueError, OverflowError):
            arrays = {key: value for key, value in arrays.items() if key != name}
    buffer = io.BytesIO()
    rng.choice([np.savez, np.savez_compressed])(buffer, **arrays)
    content = buffer.getvalue()
    if rng.random() < 0.2:  # an array whose header claims another shape than its bytes
        header = io.BytesIO()
        shape = rng.choice([(10**9,), (10**6, 10**6), (0, 10**12), (2**62,), (1,) * 40])
        form = {"descr": rng.choice(["<i8", "<U9", "|O", "<f2"]), "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, form | {"shape": shape})
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("more.npy", header.getvalue() + bytes(8))
        content = buffer.getvalue()
    return damage_bytes(content, rng) if rng.random() < 0.6 else content


def token_file(folder: Path) -> Case:
    from spectok.token_files import read_tokens

    indices = np.array([[1, 0] * 4, [11, 4] * 4])
    names = ["a.png", "b.png"]
    content = {"token_spec": SPEC.to_dict(), "files": names, "indices": indices.tolist()}
    arrays = {
        "indices": indices,
        "files": np.array(names),
        "token_spec": json.dumps(SPEC.to_dict()),
    }

    def case(rng: random.Random) -> None:
        if rng.random() < 0.5:
            path = folder / "t.json"
            path.write_bytes(damaged_json(content, rng))
        else:
            path = folder / "t.npz"
            path.write_bytes(damaged_npz(arrays, rng))
        found, stems = read_tokens(path, SPEC)
        assert found.shape == (len(stems), 8)

    return case


def token_cache(folder: Path) -> Case:
    from spectok_generation.records import describe_record
    from spectok_generation.tokens import TokenCache

    source = SAVED / "prior_run" / "tokens"
    header = json.loads((source / "header.json").read_text())
    target = folder / "tokens"
    shutil.copytree(source, target)

    def case(rng: random.Random) -> None:
        name = rng.choice(["header.json", "header.json", "tokens.bin", "labels.bin"])
        good = (source / name).read_bytes()
        bad = damaged_json(header, rng) if name == "header.json" else damage_bytes(good, rng)
        (target / name).write_bytes(bad)
        try:
            cache = TokenCache(target)
            describe_record(cache.header.tokenizer)
            if len(cache):
                cache.indices(slice(0, 96))
                cache[len(cache) - 1]
        finally:
            (target / name).write_bytes(good)

    return case


def text_features(folder: Path) -> Case:
    from spectok_generation.text.features import CaptionFeatures

    source, target = SAVED / "cat" / "captions", folder / "captions"
    shutil.copytree(source, target)
    header = json.loads((source / "header.json").read_text())
    with np.load(source / "texts.npz") as texts:
        arrays = dict(texts)

    def case(rng: random.Random) -> None:
        name = rng.choice(["header.json", "texts.npz", "features.bin"])
        good = (source / name).read_bytes()
        bad = {
            "header.json": lambda: damaged_json(header, rng),
            "texts.npz": lambda: damaged_npz(arrays, rng),
            "features.bin": lambda: damage_bytes(good, rng),
        }[name]()
        (target / name).write_bytes(bad)
        try:
            features = CaptionFeatures(target)
            features.rows([0, len(features) - 1])
        finally:
            (target / name).write_bytes(good)

    return case


def damaged_weights(content: bytes, rng: random.Random) -> bytes:
    """Damage the header of a safetensors file, its length, or any bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    what = rng.random()
    if what < 0.5:
        text = damaged_json(header, rng)
        return len(text).to_bytes(8, "little") + text + content[8 + length :]
    if what < 0.6:
        return rng.choice([0, 1, 2**63, 10**9, length * 2]).to_bytes(8, "little") + content[8:]
    return damage_bytes(content, rng)


def model_folder(folder: Path) -> Case:
    from spectok.loading import load_tokenizer

    sources = [SAVED / "tokenizers" / name for name in ("vqvae", "qgvae", "hrvqvae", "rqvae")]
    target = folder / "model"

    def case(rng: random.Random) -> None:
        source = rng.choice(sources)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        if rng.random() < 0.6:
            config = json.loads((source / "config.json").read_text())
            (target / "config.json").write_bytes(damaged_json(config, rng))
        else:
            name = "diffusion_pytorch_model.safetensors"
            (target / name).write_bytes(damaged_weights((source / name).read_bytes(), rng))
        load_tokenizer(target)

    return case


def pipeline(folder: Path) -> Case:
    from spectok_generation import TokenPipeline

    source, target = SAVED / "pipelines" / "pixelcnn", folder / "pipeline"
    files = ["model_index.json", "prior/config.json", "tokenizer/config.json"]
    shutil.copytree(source, target)

    def case(rng: random.Random) -> None:
        path = rng.choice(files)
        good = (source / path).read_bytes()
        (target / path).write_bytes(damaged_json(json.loads(good), rng))
        try:
            TokenPipeline.from_pretrained(target)
        finally:
            (target / path).write_bytes(good)

    return case


def pictures() -> list[bytes]:
    found = []
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        for mode in ("RGB", "L", "P"):
            buffer = io.BytesIO()
            image = Image.fromarray(pixels).convert(mode)
            (image.convert("RGB") if form in ("JPEG", "WEBP") else image).save(buffer, format=form)
            found.append(buffer.getvalue())
    return found


def image(folder: Path) -> Case:
    from spectok.cli.console import note_resizing
    from spectok.data.files import load_image

    contents, path = pictures(), folder / "a.png"

    def case(rng: random.Random) -> None:
        path.write_bytes(damage_bytes(rng.choice(contents), rng))
        note_resizing([path], (3, 16, 16))
        assert load_image(path, (3, 16, 16)).shape == (3, 16, 16)

    return case


def archive(folder: Path) -> Case:
    from spectok.data import DataConfig, build_dataset

    contents, path = pictures(), folder / "shard.tar"
    fields = {"name": "webdataset", "path": str(path), "image_size": 16, "channels": 3}
    config = DataConfig.model_validate(fields | {"split": "all"})

    def case(rng: random.Random) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(3):
                label = {"label": number, "caption": "a"}
                for suffix, data in (
                    ("png", rng.choice(contents)),
                    ("json", damaged_json(label, rng)),
                ):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        content = buffer.getvalue()
        path.write_bytes(damage_bytes(content, rng) if rng.random() < 0.7 else content)
        dataset = build_dataset(config, train=False)
        for number in range(len(dataset)):
            dataset[number]

    return case


TARGETS: dict[str, Callable[[Path], Case]] = {
    function.__name__: function
    for function in (
        *(token_spec, recipe, prior_recipe, override, token_file, token_cache, text_features),
        *(model_folder, pipeline, image, archive),
    )
}


# -- one case after another -----------------------------------------------------------------------


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fault(case: Case, number: int) -> str | None:
    """Return what a case did wrong; None if nothing."""
    before, start = peak_memory(), time.monotonic()
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of work; a busy machine is no fault
    signal.alarm(6 * SECONDS)  # waiting without end, as for a pipe, is one
    try:
        case(random.Random(number))
    except SpectokError as error:
        if max(map(len, error.problems), default=0) > LONGEST:
            return f"a message of {len(str(error)):,} characters: {str(error)[:200]}"
    except TooSlow:
        return f"over {SECONDS} s\n{traceback.format_exc()[-1500:]}"
    except Exception:
        return traceback.format_exc()[-2500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    taken = max(tracemalloc.get_traced_memory()[1] - held, peak_memory() - before)
    if taken > MEGABYTES << 20:
        return f"{taken >> 20} MB in {time.monotonic() - start:.1f} s"
    return None


def main() -> None:
    def stop(*_: Any) -> None:
        raise TooSlow

    targets, first, count = sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        for target in targets:
            folder = Path(root, target)
            folder.mkdir()
            case = TARGETS[target](folder)
            for number in range(-20, 0):  # imports what it needs
                with contextlib.suppress(Exception):
                    case(random.Random(number))
            tracemalloc.start()
            for number in range(first, first + count):
                found = fault(case, number)
                if found is not None:
                    print(
                        json.dumps({"target": target, "case": number, "fault": found}), flush=True
                    )
            tracemalloc.stop()
    print(json.dumps({"cases": count * len(targets)}))


if __name__ == "__main__":
    main()
