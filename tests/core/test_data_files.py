"""Images and archives that are damaged, deep, hostile, or gone: one line each, and no surprise."""

import contextlib
import io
import json
import os
import tarfile
import time
import tracemalloc
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spectok.data import (
    DataConfig,
    ImageDataset,
    Preprocessing,
    build_dataset,
    config_for_path,
    data_override,
)
from spectok.data.decode import UnreadableImage, inspect_image, open_image
from spectok.errors import DataError, SpectokError
from spectok.plugins.registry import get_dataset


def encoded(seed=0, suffix="png"):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, {"jpg": "jpeg"}.get(suffix, suffix))
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def folder_of(root, names):
    for seed, name in enumerate(names):
        write(root / name, encoded(seed))
    return root


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def parquet_of(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def build(path, **options):
    return build_dataset(config_for_path(path, image_size=8, **options))


def deep(values, path):
    """Write values as a TIFF of their own type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def in_both_ways(path, **options):
    """Return the data set decoded at once, and on demand."""
    config = config_for_path(path, image_size=8, num_held_out=0, **options)
    yield build_dataset(config)
    source = get_dataset(config.name)
    preprocessing = replace(source.preprocessing(config), max_value=config.max_value)
    yield ImageDataset(source.load(config), preprocessing, memory_limit=0)


class TestDeepGrey:
    @pytest.mark.parametrize(
        ("dtype", "top", "fitting"),
        [(np.int32, 255, 255), (np.uint16, 4000, 4095), (np.int32, 1, 1), (np.uint16, 9000, 16383)],
    )
    def test_a_small_range_is_noted_and_can_be_scaled(self, tmp_path, dtype, top, fitting):
        values = np.linspace(0, top, 64).round().astype(dtype).reshape(8, 8)
        deep(values, tmp_path / "a.tif")
        for dataset in in_both_ways(tmp_path):
            assert f"reach only {top:,} of 65,535" in str(dataset.report)
            assert f"data.max_value={fitting} would" in str(dataset.report)
            assert np.array_equal(dataset.uint8_images()[0, 0], values >> 8)
        for dataset in in_both_ways(tmp_path, max_value=fitting):
            assert "reach only" not in str(dataset.report)
            expected = np.rint(values * (255 / fitting)).astype(np.uint8)
            assert np.array_equal(dataset.uint8_images()[0, 0], expected)
            assert dataset.preprocessing["max_value"] == fitting

    def test_no_note_for_a_full_range_or_8_bits(self, tmp_path):
        deep(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8), tmp_path / "a.png")
        deep(np.full((8, 8), 3, np.uint8), tmp_path / "b.png")
        dataset = build(tmp_path, num_held_out=0)
        assert "data.max_value" not in str(dataset.report)
        assert "max_value" not in dataset.preprocessing

    def test_values_outside_are_noted(self, tmp_path):
        deep(np.array([[-5, 70000]] * 4, np.int32), tmp_path / "a.tif")
        assert "have values outside 0 to 65,535 (-5 to 70,000)" in str(build(tmp_path).report)

    @pytest.mark.parametrize("white", [1, 255])
    def test_floating_point(self, tmp_path, white):
        values = np.linspace(0, white, 64).astype(np.float32).reshape(8, 8)
        deep(values, tmp_path / "a.tif")
        config = config_for_path(tmp_path, num_held_out=0)
        for limit in (0, 1 << 20):
            rows = get_dataset("folder").load(config)
            with pytest.raises(DataError, match=r"a\.tif \(floating-point.*data\.max_value"):
                ImageDataset(rows, Preprocessing.resize_and_crop(8), memory_limit=limit)
        for dataset in in_both_ways(tmp_path, max_value=white):
            expected = np.rint(values.astype(float) * (255 / white))
            assert np.abs(dataset.uint8_images()[0, 0] - expected).max() <= 1
        values[0, 0] = np.nan
        deep(values, tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"a\.tif \(some pixels are NaN"):
            build(tmp_path, num_held_out=0, max_value=white)


class TestDark8Bits:
    @pytest.mark.parametrize("top", [1, 19])
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
    def test_masks_are_noted_and_can_be_scaled(self, tmp_path, top, mode):
        values = np.linspace(0, top, 64).round().astype(np.uint8).reshape(8, 8)
        grey = Image.fromarray(values)
        if mode == "P":
            grey.putpalette([v for k in range(256) for v in (k, k, k)])
        image = grey if mode == "P" else grey.convert(mode)
        for name in "ab":
            image.save(tmp_path / f"{name}.png")
        for dataset in in_both_ways(tmp_path):
            assert f"all 2 looked into, of images with 8 bits, reach only {top} of 255" in str(
                dataset.report
            )
            assert f"data.max_value={top} would" in str(dataset.report)
            assert np.array_equal(dataset.uint8_images()[0, 0], values)
        for dataset in in_both_ways(tmp_path, max_value=top):
            assert "8 bits" not in str(dataset.report)
            expected = np.rint(values * (255 / top)).astype(np.uint8)
            assert np.array_equal(dataset.uint8_images()[0, 0], expected)

    def test_single_dark_photographs_give_no_alarm(self, tmp_path):
        for k in range(5):
            deep(np.full((8, 8), 3 if k else 40, np.uint8), tmp_path / f"{k}.png")
        for dataset in in_both_ways(tmp_path):
            assert "max_value" not in str(dataset.report)
        for dataset in in_both_ways(tmp_path, max_value=20):
            assert "1 of 5 looked into, of images with 8 bits, have values above 20 (up to" in str(
                dataset.report
            )

    def test_a_white_beyond_8_bits_leaves_them_alone(self, tmp_path):
        deep(np.full((8, 8), 200, np.uint8), tmp_path / "a.png")
        deep(np.full((8, 8), 4095, np.uint16), tmp_path / "b.png")
        for dataset in in_both_ways(tmp_path, max_value=4095):
            assert sorted(int(x.max()) for x in dataset.uint8_images()) == [200, 255]


class TestEnds:
    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_bytes_after_the_end_are_no_damage(self, tmp_path, suffix):
        write(tmp_path / f"a.{suffix}", encoded(0, suffix) + bytes(10_000))
        for dataset in in_both_ways(tmp_path):
            assert dataset.report.unreadable == []

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_an_image_cut_short_is_found_without_decoding_all(self, tmp_path, suffix):
        write(tmp_path / f"a.{suffix}", encoded(0, suffix)[:-150])
        config = config_for_path(tmp_path, num_held_out=0)
        rows = get_dataset("folder").load(config)
        with pytest.raises(DataError, match=rf"a\.{suffix} \(.*([Tt]runcated|broken|EOF)"):
            ImageDataset(rows, Preprocessing.resize_and_crop(8), memory_limit=0)


class TestTablesOfImages:
    def test_lists_of_images(self, tmp_path):
        parquet_of(tmp_path / "0.parquet", images=[[encoded(0), encoded(1)]])
        with pytest.raises(DataError, match="column 'images' holds lists, not one image per row"):
            build(tmp_path)
        parquet_of(tmp_path / "0.parquet", images=[3])
        with pytest.raises(DataError, match=r"column 'images' holds Value.*int64.*not one image"):
            build(tmp_path)

    def test_relative_paths_are_beside_the_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir("/")
        write(tmp_path / "imgs" / "a.png", encoded(0))
        file = parquet_of(tmp_path / "0.parquet", image=["imgs/a.png", "imgs/b.png"])
        with pytest.raises(DataError, match=r"row 1 \(imgs/b\.png is missing\)"):
            build(file, num_held_out=0)
        write(tmp_path / "imgs" / "b.png", encoded(1))
        for path in (file, tmp_path):
            assert len(build(path, num_held_out=0)) == 2

    def test_a_null_image_is_named(self, tmp_path):
        parquet_of(tmp_path / "0.parquet", image=[encoded(0), None])
        with pytest.raises(DataError, match=r"row 1 \(there is no image in this row\)"):
            build(tmp_path, num_held_out=0)

    def test_a_test_file_without_labels(self, tmp_path):
        parquet_of(
            tmp_path / "train.parquet", image=[encoded(0)] * 3, label=[0, 2, 1], text=["x"] * 3
        )
        parquet_of(tmp_path / "test.parquet", image=[encoded(1)])
        for options in ({}, {"label_column": "label"}):
            assert build(tmp_path, **options).labels.tolist() == [0, 2, 1]
            assert build(tmp_path, split="test", **options).labels is None
        report = build(tmp_path, split="test", label_column="label").report
        assert "no labels: split test has no column label" in str(report)

    def test_labels_that_are_lists(self, tmp_path):
        parquet_of(tmp_path / "0.parquet", image=[encoded(0)], label=[[1]])
        with pytest.raises(DataError, match=r"label \[1\] of row 0 is not a class"):
            build(tmp_path, label_column="label")


class TestHostile:
    @pytest.mark.parametrize("kind", ["fifo", "device"])
    @pytest.mark.parametrize("name", ["b.png", "metadata.csv", "a.txt", "b.tar", "b.parquet"])
    def test_no_device_or_pipe_is_read(self, tmp_path, name, kind):
        if not name.endswith((".tar", ".parquet")):
            write(tmp_path / "a.png", encoded(0))
        if kind == "fifo":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")
        for path in {tmp_path, tmp_path / name}:
            with pytest.raises(DataError, match=r"device or pipe|not a directory") as caught:
                build(path, num_held_out=0)
            assert "\n" not in str(caught.value)

    def test_images_that_claim_too_much(self, tmp_path):
        content = bytearray(encoded(0))
        content[16:24] = (100_000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        write(tmp_path / "large.png", bytes(content))
        gif = (
            b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + bytes(1) + b"\x08"
        )
        write(tmp_path / "frame.gif", gif + bytes(10))
        stream, text = io.BytesIO(), PngInfo()
        text.add_text("a", "x" * (80 << 20), zip=True)
        Image.new("L", (8, 8)).save(stream, "png", pnginfo=text)
        write(tmp_path / "text.png", stream.getvalue())
        Image.new("L", (1, 60_000)).save(tmp_path / "narrow.png")
        write(tmp_path / "script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
        config = DataConfig(name="folder", path=tmp_path, image_size=256, num_held_out=0)
        with pytest.raises(DataError) as caught:
            build_dataset(config)
        message = str(caught.value)
        assert "\n" not in message
        for name in ("large.png", "frame.gif", "text.png", "narrow.png", "script.png"):
            assert name in message

    def test_files_that_vanish_or_shrink_while_they_are_read(self, tmp_path):
        folder_of(tmp_path / "f", ["a.png"])
        tar_of(tmp_path / "s" / "0.tar", {"a.png": encoded(0)})
        found = {}
        for path in ("f", "s"):
            _, found[path] = in_both_ways(tmp_path / path)
        os.truncate(tmp_path / "s" / "0.tar", 600)
        (tmp_path / "f" / "a.png").unlink()
        for path, message in (("f", r"image a\.png .*missing"), ("s", r"0\.tar:a .*shorter")):
            with pytest.raises(DataError, match=message) as caught:
                found[path][0]
            assert "\n" not in str(caught.value)
        (tmp_path / "s" / "0.tar").unlink()
        with pytest.raises(DataError, match=r"image 0\.tar:a .*missing"):
            found["s"][0]

    @pytest.mark.parametrize("path", ["", "~nobody-here/x", "x" * 5000, "~nobody-here/*.tar"])
    def test_what_is_no_path(self, path):
        for kind in ("folder", "webdataset", "parquet"):
            with pytest.raises(DataError, match=r"is not a path|is empty") as caught:
                build_dataset(DataConfig(name=kind, path=path))
            assert len(str(caught.value)) < 400
        with pytest.raises(DataError, match=r"is not a path|is empty"):
            data_override(path)

    def test_names_are_shown_on_one_line(self, tmp_path):
        bad = "a\nerror: b\x1b[31m.png"
        write(tmp_path / "f" / bad, "no")
        write(tmp_path / "f" / os.fsdecode(b"\xff.png"), "no")
        with pytest.raises(
            DataError, match=r"a\\nerror: b\\x1b\[31m\.png \(not an image"
        ) as caught:
            build(tmp_path / "f", num_held_out=0)
        str(caught.value).encode()
        write(tmp_path / "g" / bad, encoded(0))
        write(tmp_path / "g" / os.fsdecode(b"\xff.png"), encoded(1))
        dataset = build(tmp_path / "g", num_held_out=0)
        assert len(dataset) == 2
        dataset.report.to_dict()
        folder_of(tmp_path / "h", ["a.png"])
        lines = [{"file_name": name} for name in ("a.png", "b\0.png")]
        write(tmp_path / "h" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
        with pytest.raises(DataError, match=r"b\\x00\.png \(listed in the metadata, but missing"):
            build(tmp_path / "h")

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, '{"a": ' * 200 + "1" + "}" * 200, "1" * 10_000]
    )
    def test_json_that_is_too_deep_or_long(self, tmp_path, text):
        folder_of(tmp_path / "f", ["a.png"])
        write(tmp_path / "f" / "metadata.jsonl", text)
        tar_of(tmp_path / "s" / "0.tar", {"a.png": encoded(0), "a.json": text.encode()})
        for path in ("f", "s"):
            with pytest.raises(DataError, match="is not valid JSON") as caught:
                build(tmp_path / path)
            assert len(str(caught.value)) < 500

    def test_damaged_archives(self, tmp_path):
        shard = tar_of(tmp_path / "0.tar", {"a.png": encoded(0), "b.png": encoded(1)})
        whole = shard.read_bytes()
        generator = np.random.default_rng(0)
        for _ in range(200):
            content = bytearray(whole)
            for place in generator.integers(0, 3072, 4):
                content[place] = generator.integers(256)
            shard.write_bytes(content)
            with contextlib.suppress(SpectokError):
                build(shard, num_held_out=0)


@pytest.mark.parametrize("count", [1_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_flipped_bytes_of_images_give_errors_of_our_own(count):
    """Any bytes give an image or an ``UnreadableImage``, in bounded time and memory."""
    seeds = [encoded(0, suffix) for suffix in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "avif")]
    seeds += [encoded(0, suffix) for suffix in ("ppm", "tga", "jpeg2000")]
    generator, preprocessing = np.random.default_rng(0), Preprocessing.resize_and_crop(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(count):
            content = np.frombuffer(seeds[generator.integers(len(seeds))], np.uint8).copy()
            within = len(content) if generator.random() < 0.5 else min(len(content), 80)
            places = generator.integers(0, within, generator.choice((1, 2, 8)))
            content[places] = generator.integers(0, 256, len(places))
            start = time.monotonic()
            for read in (lambda content: preprocessing(open_image(content)), inspect_image):
                with contextlib.suppress(UnreadableImage):
                    read(content.tobytes())
            assert time.monotonic() - start < 10


@pytest.mark.parametrize("read", [open_image, inspect_image])
@pytest.mark.parametrize("chunk", [b"IDAT", b"iCCP", b"tEXt"])
def test_a_part_of_an_image_may_not_claim_more_than_the_file(tmp_path, read, chunk):
    stream = io.BytesIO()
    Image.new("L", (16, 16), 3).save(stream, "PNG")
    content = stream.getvalue()
    start = content.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(content[:start] + b"\xff\xff\x01\x1b" + chunk + content[start + 8 :])
    tracemalloc.start()
    with contextlib.suppress(UnreadableImage):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.slow
def test_an_image_may_not_claim_thousands_of_times_its_bytes(tmp_path):
    content = bytearray(encoded(0, "bmp"))
    content[18:26] = (9_000).to_bytes(4, "little") * 2
    write(tmp_path / "a.bmp", bytes(content))
    with pytest.raises(DataError, match=r"a\.bmp \(it claims 9000×9000 pixels in a file of 4\d\d"):
        build(tmp_path, num_held_out=0)
    Image.new("RGB", (9_000, 9_000)).save(tmp_path / "white.png")
    (tmp_path / "a.bmp").unlink()
    assert build(tmp_path, num_held_out=0).report.sizes == {(9_000, 9_000): 1}
