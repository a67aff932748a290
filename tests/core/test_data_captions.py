"""Captions and labels come out as they were written, or the line that is wrong is named."""

import io
import json
import tarfile
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from spectok.data import build_dataset, config_for_path
from spectok.errors import DataError

NAN = float("nan")


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


def captions_of(dataset):
    """Return the captions of each image, sorted by the images' names."""
    return [dataset.captions_of(i) for i in sorted(range(len(dataset)), key=dataset.name_of)]


class TestTables:
    def metadata(self, tmp_path, content, name="metadata.csv", images=("a.png", "b.png")):
        folder_of(tmp_path, images)
        write(tmp_path / name, content)
        return build(tmp_path, num_held_out=0)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("b.png,a cat, a dog", "line 3 has 3 fields where the header has 2"),
            ("b.png", "line 3 has 1 fields where the header has 2"),
            ('b.png,"a cat" asleep', "line 3 cannot be read"),
            ('b.png,"a cat', "line 3 cannot be read"),
        ],
    )
    def test_a_row_that_would_cut_or_change_a_caption_is_refused(self, tmp_path, line, message):
        with pytest.raises(DataError, match=rf"metadata\.csv, {message}") as caught:
            self.metadata(tmp_path, f"file_name,text\na.png,one\n{line}\n")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_marks_quotes_and_line_ends(self, tmp_path, end):
        lines = ["﻿file_name,text", 'a.png,"one, ""two"""', "", 'b.png,"three', 'four"', ""]
        dataset = self.metadata(tmp_path, end.join(lines))
        assert captions_of(dataset) == [('one, "two"',), ("three\nfour",)]

    def test_tabs(self, tmp_path):
        dataset = self.metadata(tmp_path, "file_name\ttext\na.png\tone, two\n", "metadata.tsv")
        assert captions_of(dataset) == [("one, two",)]

    @pytest.mark.parametrize("separator", [";", "\t"])
    def test_other_separators_are_named(self, tmp_path, separator):
        with pytest.raises(DataError, match=r"no column file_name; its first line has 'file_name"):
            self.metadata(tmp_path, f"file_name{separator}text\na.png{separator}one\n")

    def test_a_very_long_caption(self, tmp_path):
        dataset = self.metadata(tmp_path, f"file_name,text\na.png,{'long ' * 50_000}\n")
        assert len(dataset.captions_of(0)[0]) == 249_999

    def test_parquet(self, tmp_path):
        folder_of(tmp_path, ["a.png", "b.png"])
        columns = {"file_name": ["a.png", "b.png"], "text": [["one", "two"], None]}
        parquet_of(tmp_path / "metadata.parquet", **columns)
        assert captions_of(build(tmp_path, num_held_out=0)) == [("one", "two"), ()]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "shards"])
def test_no_caption_is_none_and_not_nan(tmp_path, kind):
    values = [None, "", " \ufeff ", ["one", None, ""], "﻿two"]
    expected = [(), (), (), ("one",), ("two",)]
    if kind == "jsonl":
        values[1] = NAN
        folder_of(tmp_path, [f"{i}.png" for i in range(5)])
        lines = [json.dumps({"file_name": f"{i}.png", "text": v}) for i, v in enumerate(values)]
        write(tmp_path / "metadata.jsonl", "\n".join(lines))
    elif kind == "shards":
        values[1] = NAN
        images = {f"{i}.png": encoded(i) for i in range(5)}
        texts = {f"{i}.json": json.dumps({"text": v}).encode() for i, v in enumerate(values)}
        tar_of(tmp_path / "0.tar", images | texts)
    else:
        rows = [v if isinstance(v, list) else [v] for v in values]
        parquet_of(tmp_path / "0.parquet", image=[encoded(i) for i in range(5)], text=rows)
    dataset = build(tmp_path, num_held_out=0)
    assert captions_of(dataset) == expected
    assert "3 images have no caption" in str(dataset.report)


def test_nan_in_a_column_of_numbers(tmp_path):
    parquet_of(tmp_path / "0.parquet", image=[encoded(0), encoded(1)], text=[NAN, 2.0])
    assert captions_of(build(tmp_path, num_held_out=0)) == [(), ("2.0",)]


@pytest.mark.parametrize("value", [{"en": "cat"}, [["cat"]], True])
def test_what_is_no_text_is_refused(tmp_path, value):
    folder_of(tmp_path, ["a.png"])
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.png", "text": value}))
    with pytest.raises(DataError, match=r"a\.png: caption .* is not a text"):
        build(tmp_path)


def test_text_files_alike_in_folders_and_shards(tmp_path):
    text = "\ufeffone\u2028two\r\n\r\n three \r\n".encode()
    folder_of(tmp_path / "folder", ["a.png"])
    write(tmp_path / "folder" / "a.txt", text)
    tar_of(tmp_path / "shards" / "0.tar", {"a.png": encoded(0), "a.txt": text})
    for kind in ("folder", "shards"):
        assert captions_of(build(tmp_path / kind, num_held_out=0)) == [("one\u2028two", "three")]


class TestLabels:
    def folder(self, tmp_path, values, **options):
        folder_of(tmp_path, [f"{i}.png" for i in range(len(values))])
        lines = [json.dumps({"file_name": f"{i}.png", "label": v}) for i, v in enumerate(values)]
        write(tmp_path / "metadata.jsonl", "\n".join(lines))
        return build(tmp_path, num_held_out=0, **options)

    @pytest.mark.parametrize("value", [None, [1], {"a": 1}, True, -2, 1.5, 10**30, 10**9])
    def test_one_that_is_no_class_is_named_with_a_way_around(self, tmp_path, value):
        message = r"label .* of 1\.png is not a class.*set data\.labels to false"
        with pytest.raises(DataError, match=message) as caught:
            self.folder(tmp_path, [0, value, 1])
        assert len(str(caught.value)) < 500
        assert self.folder(tmp_path, [0, value, 1], labels=False).labels is None

    @pytest.mark.parametrize("value", [None, -1, NAN, "", "-1"])
    def test_no_label_at_all_is_no_labels(self, tmp_path, value):
        dataset = self.folder(tmp_path, [value] * 3)
        assert dataset.labels is None
        assert "no labels: every image's label is empty or -1" in str(dataset.report)

    def test_labels_left_out_everywhere(self, tmp_path):
        folder_of(tmp_path / "folder", ["a/1.png", "b/2.png"])
        tar_of(tmp_path / "s" / "0.tar", {"a.png": encoded(0), "a.cls": b"1"})
        parquet_of(tmp_path / "p" / "0.parquet", image=[encoded(0)], label=[3])
        for path in ("folder", "s", "p"):
            assert build(tmp_path / path, num_held_out=0).labels is not None
            dataset = build(tmp_path / path, num_held_out=0, labels=False)
            assert (dataset.labels, dataset.class_names, dataset.num_classes) == (None, None, None)


class TestUnicode:
    def test_metadata_and_text_files_in_the_other_normal_form(self, tmp_path):
        name = "caf\u00e9.png"
        for given, stored in (("NFC", "NFD"), ("NFD", "NFC")):
            root = folder_of(tmp_path / given, [normalize(stored, name)])
            line = json.dumps({"file_name": normalize(given, name), "text": "x"})
            write(root / "metadata.jsonl", line)
            assert captions_of(build(root, num_held_out=0)) == [("x",)]
            (root / "metadata.jsonl").unlink()
            write(root / normalize(given, "caf\u00e9.txt"), "y")
            assert captions_of(build(root, num_held_out=0)) == [("y",)]

    def test_classes_shards_and_paths(self, tmp_path):
        decomposed = normalize("NFD", "caf\u00e9")
        folder_of(tmp_path / "f", ["train/a/1.png", "train/caf\u00e9/2.png"])
        folder_of(tmp_path / "f", [f"test/{decomposed}/3.png"])
        assert build(tmp_path / "f", split="test").class_names == ["a", "caf\u00e9"]
        shard = {f"{decomposed}.png": encoded(0), "caf\u00e9.txt": b"x"}
        assert captions_of(build(tar_of(tmp_path / "0.tar", shard), num_held_out=0)) == [("x",)]
        folder_of(tmp_path / "p" / "imgs", [f"{decomposed}.png"])
        parquet_of(tmp_path / "p" / "0.parquet", image=["imgs/caf\u00e9.png"])
        assert len(build(tmp_path / "p" / "0.parquet", num_held_out=0)) == 1


class TestDottedNames:
    def build(self, tmp_path, *names):
        members = {n: encoded(i) if n.endswith("png") else n.encode() for i, n in enumerate(names)}
        return build(tar_of(tmp_path / "x.tar", members), num_held_out=0)

    def test_each_image_has_its_own_text(self, tmp_path):
        dataset = self.build(tmp_path, "a.b.png", "a.b.txt", "a.c.png", "a.c.txt", "d.png", "d.txt")
        named = {dataset.name_of(i): dataset.captions_of(i) for i in range(len(dataset))}
        expected = {"a.b": ("a.b.txt",), "a.c": ("a.c.txt",), "d": ("d.txt",)}
        assert named == {f"x.tar:{key}": texts for key, texts in expected.items()}
        assert "2 rows are called by their whole names" in str(dataset.report)

    def test_a_text_up_to_the_first_dot_belongs_to_all(self, tmp_path):
        dataset = self.build(tmp_path, "a.left.png", "a.right.png", "a.txt")
        assert captions_of(dataset) == [("a.txt",), ("a.txt",)]

    def test_other_columns_of_a_row_are_no_images(self, tmp_path):
        dataset = self.build(tmp_path, "a.png", "a.mask.png", "a.txt", "b.png", "b.mask.png")
        assert {dataset.name_of(i) for i in range(len(dataset))} == {"x.tar:a", "x.tar:b"}
        assert "2 members of shards are not read: 2 .mask.png" in str(dataset.report)
