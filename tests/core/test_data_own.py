"""One's own images: folders, parquet, tar shards, hub ids; and what is said when they are bad."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from spectok.data import DataConfig, Preprocessing, build_dataset, config_for_path
from spectok.errors import ConfigError, DataError


def picture(seed=0, size=(12, 10), mode="RGB"):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(seed=0, suffix="png", **options):
    stream = io.BytesIO()
    picture(seed, **options).save(stream, "jpeg" if suffix == "jpg" else suffix)
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def folder_of(root, names):
    for seed, name in enumerate(names):
        write(root / name, encoded(seed, name.rpartition(".")[2]))
    return root


def build(path, **options):
    return build_dataset(config_for_path(path, image_size=8, **options))


class TestFolder:
    def test_classes_are_the_subdirectories(self, tmp_path):
        folder_of(tmp_path, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
        dataset = build(tmp_path, num_held_out=0)
        assert dataset.class_names == ["cat", "dog"]
        assert len(dataset) == 8
        for i in range(8):
            assert dataset.name_of(i).startswith(dataset.class_names[dataset[i]["label"]])

    def test_held_out_images_are_disjoint_complete_and_stable(self, tmp_path):
        names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(12)]
        folder_of(tmp_path, names)
        parts = {s: build(tmp_path, split=s, num_held_out=8) for s in ("train", "test")}
        held = {s: {d.name_of(i) for i in range(len(d))} for s, d in parts.items()}
        assert held["train"] | held["test"] == set(names)
        assert len(held["test"]) == 8
        assert not held["train"] & held["test"]
        assert set(parts["test"].labels) == {0, 1}
        assert "8 of 24 images are held out" in str(parts["train"].report)
        folder_of(tmp_path, ["cat/new.png"])
        again = build(tmp_path, split="test", num_held_out=8)
        assert len(held["test"] - {again.name_of(i) for i in range(8)}) <= 1

    def test_split_directories_are_used_and_number_classes_alike(self, tmp_path):
        folder_of(tmp_path, ["train/a/1.png", "train/b/2.png", "test/b/3.png"])
        assert len(build(tmp_path)) == 2
        test = build(tmp_path, split="test")
        assert (len(test), test[0]["label"], test.class_names) == (1, 1, ["a", "b"])
        assert len(build(tmp_path, split="train", num_held_out=1)) == 2

    def test_a_file_called_test_is_not_a_split(self, tmp_path):
        folder_of(tmp_path, ["test_1.png", "cat.png", "train.png"])
        assert len(build(tmp_path, num_held_out=0)) == 3

    def test_captions_from_metadata(self, tmp_path):
        folder_of(tmp_path, ["a.png", "b.png", "c.png"])
        rows = [
            {"file_name": "a.png", "text": "one"},
            {"file_name": "b.png", "text": ["two", "three"]},
            {"file_name": "a.png", "text": "four\u2028five"},
        ]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write(tmp_path / "metadata.jsonl", "\n".join(lines) + "\n")
        dataset = build(tmp_path, num_held_out=0)
        captions = {dataset.name_of(i): dataset.captions_of(i) for i in range(len(dataset))}
        assert captions == {"a.png": ("one", "four\u2028five"), "b.png": ("two", "three")}
        assert "1 images are left out" in str(dataset.report)
        assert "c.png" in str(dataset.report)

    def test_metadata_above_the_splits(self, tmp_path):
        folder_of(tmp_path, ["train/a.png", "test/b.png"])
        write(
            tmp_path / "metadata.csv", "file_name,caption,label\ntrain/a.png,x,2\ntest/b.png,y,10\n"
        )
        dataset = build(tmp_path, split="test")
        assert (dataset[0]["caption"], dataset[0]["label"]) == ("y", 1)
        assert dataset.class_names == ["2", "10"]

    def test_captions_from_text_files(self, tmp_path):
        folder_of(tmp_path, ["a.png", "b.png"])
        write(tmp_path / "a.txt", "a red boat\n\na boat at sea\n")
        dataset = build(tmp_path, num_held_out=0)
        captions = {dataset.name_of(i): dataset.captions_of(i) for i in range(2)}
        assert captions == {"a.png": ("a red boat", "a boat at sea"), "b.png": ()}
        assert "1 images have no caption, such as b.png" in str(dataset.report)

    def test_metadata_naming_a_missing_file_is_found_before_training(self, tmp_path):
        folder_of(tmp_path, ["a.png"])
        lines = [json.dumps({"file_name": name, "text": "x"}) for name in ("a.png", "gone.png")]
        write(tmp_path / "metadata.jsonl", "\n".join(lines))
        with pytest.raises(DataError, match=r"gone\.png \(listed in the metadata, but missing\)"):
            build(tmp_path, num_held_out=0)
        dataset = build(tmp_path, num_held_out=0, skip_unreadable=True)
        assert len(dataset) == 1
        assert [p.name for p in dataset.report.unreadable] == ["gone.png"]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ('{"file_name": "a.png"', "line 1 is not valid JSON"),
            ('{"text": "a"}', "entry 1 has no file_n"),
        ],
    )
    def test_broken_metadata(self, tmp_path, lines, message):
        folder_of(tmp_path, ["a.png"])
        write(tmp_path / "metadata.jsonl", lines)
        with pytest.raises(DataError, match=message):
            build(tmp_path)

    def test_unknown_caption_column(self, tmp_path):
        folder_of(tmp_path, ["a.png"])
        write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.png", "title": "x"}))
        with pytest.raises(DataError, match=r"no column 'titel' .did you mean 'title'"):
            build(tmp_path, caption_column="titel")


class TestDamage:
    def damaged(self, tmp_path):
        folder_of(tmp_path, [f"{i}.png" for i in range(5)])
        write(tmp_path / "text.png", "not an image")
        write(tmp_path / "cut.png", encoded(7)[:-60])
        write(tmp_path / "cut.jpg", encoded(8, "jpg", size=(40, 40))[:-200])
        write(tmp_path / "empty.jpg", b"")
        return tmp_path

    def test_damaged_files_are_named_with_a_remedy(self, tmp_path):
        with pytest.raises(DataError) as caught:
            build(self.damaged(tmp_path), num_held_out=0)
        message = str(caught.value)
        assert "\n" not in message
        for name in ("text.png", "cut.png", "cut.jpg", "empty.jpg", "skip_unreadable"):
            assert name in message

    def test_skip_unreadable_goes_on_and_reports(self, tmp_path):
        dataset = build(self.damaged(tmp_path), num_held_out=0, skip_unreadable=True)
        assert len(dataset) == 5
        assert [dataset[i]["images"].shape for i in range(5)] == [(3, 8, 8)] * 5
        found = {p.name for p in dataset.report.unreadable}
        assert found == {"text.png", "cut.png", "cut.jpg", "empty.jpg"}

    def test_headers_show_the_same_damage_without_decoding(self, tmp_path):
        from spectok.data.checks import inspect_rows
        from spectok.data.folder import read_folder

        rows = read_folder(self.damaged(tmp_path), DataConfig(name="folder"))
        checks = inspect_rows(rows, Preprocessing.resize_and_crop(8))
        assert {p.name for p in checks.problems} == {
            *("text.png", "cut.png", "cut.jpg", "empty.jpg")
        }
        assert len(checks.kept) == 5

    def test_nothing_readable(self, tmp_path):
        write(tmp_path / "a.png", "no")
        with pytest.raises(DataError, match=r"no readable image.*a\.png"):
            build(tmp_path, num_held_out=0, skip_unreadable=True)

    def test_empty_and_missing_folders(self, tmp_path):
        for path, message in [(tmp_path, "holds no image"), (tmp_path / "no", "does not exist")]:
            with pytest.raises(DataError, match=message) as caught:
                build(path)
            assert "\n" not in str(caught.value)

    def test_too_few_images_to_hold_any_out(self, tmp_path):
        folder_of(tmp_path, ["a.png"])
        assert len(build(tmp_path)) == 1
        with pytest.raises(DataError, match="no image is left for split 'test'"):
            build(tmp_path, split="test")
        with pytest.raises(DataError, match="no split 'validation'"):
            build(tmp_path, split="validation")

    def test_own_data_needs_a_path(self):
        with pytest.raises(ConfigError, match=r"'folder' needs data\.path"):
            build_dataset(DataConfig(name="folder"))


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """A directory with train.parquet and test.parquet, and a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")})
    for split, kinds in {"train": "abcabc", "test": "bbc"}.items():
        rows = {
            "picture": [{"bytes": encoded(i), "path": None} for i in range(len(kinds))],
            "kind": list(kinds),
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


class TestParquet:
    def test_splits_columns_and_text_labels(self, parquet):
        train = build(parquet, label_column="kind")
        test = build(parquet, label_column="kind", split="test")
        assert (len(train), len(test)) == (6, 3)
        assert train.class_names == test.class_names == ["a", "b", "c"]
        assert test.labels.tolist() == [1, 1, 2]
        assert train.report.sizes == {(12, 10): 6}
        whole = build_dataset(DataConfig(name="parquet", path=parquet, image_size=10))
        shown = np.asarray(picture(4)).transpose(2, 0, 1)[:, :, 1:11]
        assert np.array_equal(whole.uint8_images()[4], shown)

    def test_a_preset_reads_it_in_place_of_its_hub_id(self, parquet):
        dataset = build_dataset(DataConfig(name="cifar10", path=parquet, split="test"))
        assert dataset.image_shape == (3, 32, 32)
        assert dataset.preprocessing["filter"] == "bilinear"

    def test_scores_are_not_taken_for_classes(self, tmp_path, parquet):
        import datasets

        rows = {
            "image": [{"bytes": encoded(0), "path": None}],
            "label": [0.5],
            "text": [["a", "b"]],
        }
        features = datasets.Features(
            image=datasets.Image(),
            label=datasets.Value("float32"),
            text=datasets.List(datasets.Value("string")),
        )
        path = tmp_path / "scores.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        dataset = build(path)
        assert dataset.labels is None
        assert dataset.captions_of(0) == ("a", "b")
        with pytest.raises(DataError, match=r"label 0\.5 of row 0 is not a class"):
            build(path, label_column="label")

    def test_one_file_is_split_by_holding_out(self, parquet):
        file = parquet / "train.parquet"
        assert len(build(file, num_held_out=2)) == 4
        assert len(build(file, num_held_out=2, split="test")) == 2

    def test_a_damaged_file(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        write(tmp_path / "train.parquet", b"PAR1 and then nothing of the kind PAR1")
        with pytest.raises(DataError, match="not readable as parquet") as caught:
            build(tmp_path)
        assert "\n" not in str(caught.value)


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def row(key, seed):
    return {
        f"{key}.jpg": encoded(seed, "jpg"),
        f"{key}.txt": f"caption {seed}".encode(),
        f"{key}.cls": str(seed % 3).encode(),
    }


class TestShards:
    def shards(self, tmp_path, rows=(3, 3)):
        seed = iter(range(100))
        for number, count in enumerate(rows):
            members = {}
            for k in range(count):
                members |= row(f"{number}{k}", next(seed))
            tar_of(tmp_path / f"shard-{number}.tar", members)
        return tmp_path

    @pytest.mark.parametrize("streaming", [False, True])
    def test_rows_of_all_shards(self, tmp_path, streaming):
        pattern = str(self.shards(tmp_path) / "*.tar")
        dataset = build(pattern, num_held_out=0, streaming=streaming)
        assert len(dataset) == 6
        assert dataset.report.checked == ("headers" if streaming else "decoded")
        items = {dataset.name_of(i): dataset[i] for i in range(6)}
        item = items["shard-1.tar:11"]
        assert (item["caption"], item["label"], dataset.num_classes) == ("caption 4", 1, 3)

    def test_reading_in_place_gives_the_same_pixels(self, tmp_path):
        self.shards(tmp_path)
        held = build(tmp_path, num_held_out=0)
        placed = build(tmp_path, num_held_out=0, streaming=True)
        assert np.array_equal(held.uint8_images(), placed.uint8_images())

    def test_named_splits(self, tmp_path):
        tar_of(tmp_path / "train-0.tar", row("a", 0) | row("b", 1))
        tar_of(tmp_path / "test-0.tar", row("c", 2))
        assert (len(build(tmp_path)), len(build(tmp_path, split="test"))) == (2, 1)

    @pytest.mark.parametrize("left_out", [700, 1024, 5000])
    def test_a_shard_cut_short_is_named(self, tmp_path, left_out):
        shard = self.shards(tmp_path) / "shard-1.tar"
        os.truncate(shard, shard.stat().st_size - 10240 + 1024 - left_out)
        with pytest.raises(DataError, match=r"shard-1\.tar .*after \d rows"):
            build(tmp_path, num_held_out=0)
        dataset = build(tmp_path, num_held_out=0, skip_unreadable=True)
        whole = 1 if left_out == 5000 else 2
        assert len(dataset) == 3 + whole
        assert f"damaged after {whole} rows" in dataset.report.unreadable[0].reason

    def test_not_a_tar_and_no_shard(self, tmp_path):
        write(tmp_path / "a.tar", "no archive" * 100)
        with pytest.raises(DataError, match="not a tar file"):
            build(tmp_path / "a.tar")
        with pytest.raises(DataError, match="matches no file"):
            build(tmp_path / "b*.tar")

    def test_streaming_is_for_shards(self, tmp_path):
        with pytest.raises(ConfigError, match="streaming is for webdataset, not 'folder'"):
            build(folder_of(tmp_path, ["a.png"]), streaming=True)


class TestHub:
    def test_offline_says_that_a_path_works(self):
        with pytest.raises(DataError, match=r"'ylecun/mnist'.*--data; data\.path") as caught:
            build_dataset(DataConfig(name="mnist"))
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match="'nobody/nothing'"):
            build_dataset(DataConfig(name="hub", path="nobody/nothing"))

    def test_a_preset_without_a_hub_id_asks_for_a_path(self):
        with pytest.raises(DataError, match=r"'lsun_church128' has no known place.*data\.path"):
            build_dataset(DataConfig(name="lsun_church128"))


def test_kind_of_path(tmp_path):
    folder_of(tmp_path / "pictures", ["a.png"])
    write(tmp_path / "tables" / "train.parquet", b"")
    write(tmp_path / "tars" / "0.tar", b"")
    kinds = {
        tmp_path / "pictures": "folder",
        tmp_path / "tables": "parquet",
        tmp_path / "tars": "webdataset",
        "x/*.tar": "webdataset",
        "a.parquet": "parquet",
        "owner/name": "hub",
        "./owner/name": "folder",
    }
    assert {path: config_for_path(path).name for path in kinds} == kinds


def test_the_real_mnist_files():
    root = os.environ.get("SPECTOK_TEST_DATA")
    if not root:
        pytest.skip("SPECTOK_TEST_DATA names no directory with mnist/test.parquet")
    dataset = build_dataset(DataConfig(name="mnist", path=f"{root}/mnist", split="test"))
    assert (len(dataset), dataset.image_shape, dataset.num_classes) == (10000, (1, 28, 28), 10)
