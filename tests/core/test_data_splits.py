"""Which images are train and which are test, however that is spelt; links; files not read."""

import io
import json
import os
import tarfile
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from spectok.data import build_dataset, config_for_path
from spectok.data.split_names import Division, choose_split, parse_split_name
from spectok.errors import DataError


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


def names(path, **options):
    dataset = build(path, **options)
    return [dataset.name_of(i) for i in range(len(dataset))]


PAIRS = [
    *(("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("train", "eval")),
    *(("training_set", "test_set"), ("train", "val"), ("train", "validation"), ("train", "dev")),
    *(
        ("train", "holdout"),
        ("train", "held-out"),
        ("Training", "Testing"),
        ("trainset", "testset"),
    ),
    *(("seg_train", "seg_test"), ("train2017", "val2017"), ("TrainingData", "TestData")),
    *(("data/train", "data/test"), ("imgs/Train", "imgs/Test"), ("a/b/train", "c/test")),
    *(("train images", "test images"), ("TRAINset", "TESTset"), ("X_train", "X_test")),
    *(("training_data/train", "training_data/test"), ("trainval", "test")),
    *(("imagesTr", "imagesTs"), ("tr", "va"), ("treino", "teste"), ("训练", "测试")),
    *(("训练集", "测试集"), ("train", "privatetest"), ("training_set", "test_unlabeled")),
]


class TestNames:
    @pytest.mark.parametrize(("train", "test"), PAIRS)
    def test_folders(self, tmp_path, train, test):
        folder_of(tmp_path, [f"{train}/1.png", f"{train}/2.png", f"{test}/3.png"])
        assert names(tmp_path) == [f"{train}/1.png", f"{train}/2.png"]
        assert names(tmp_path, split="test") == [f"{test}/3.png"]
        assert build(tmp_path).class_names is None

    @pytest.mark.parametrize(("train", "test"), PAIRS)
    def test_tables_and_shards(self, tmp_path, train, test):
        for layout in ("{}/0", "{}", "{}-00000-of-00001-0a1b"):
            parts = [f"{layout.format(name)}.tar" for name in (train, test)]
            division = Division(parts, file_names=True)
            assert division.splits["train"] == parts[:1]
            assert division.choose("test", "x") == (parts[1:], True)

    def test_classes_of_divided_folders(self, tmp_path):
        below = [f"imgs/{s}/{c}/1.png" for s in ("Train", "Val") for c in ("cat", "dog")]
        above = [f"{c}/{s}/1.png" for s in ("train", "test") for c in ("cat", "dog")]
        for root, files in ((tmp_path / "below", below), (tmp_path / "above", above)):
            for split in ("train", "test"):
                dataset = build(folder_of(root, files), split=split)
                assert dataset.class_names == ["cat", "dog"]
                assert dataset.labels.tolist() == [0, 1]

    def test_a_class_called_train_is_no_split(self, tmp_path):
        folder_of(tmp_path, [f"{c}/{i}.png" for c in ("bus", "car", "train") for i in (1, 2)])
        dataset = build(tmp_path, num_held_out=0)
        assert (len(dataset), dataset.class_names) == (6, ["bus", "car", "train"])
        assert "looking like splits, but not taken as such: train" in str(dataset.report)

    def test_test_beside_others_is_never_trained_on(self, tmp_path):
        folder_of(tmp_path, ["cat/1.png", "dog/2.png", "Test/cat/3.png"])
        dataset = build(tmp_path)
        assert dataset.class_names == ["cat", "dog"]
        assert [dataset.name_of(i) for i in range(len(dataset))] == ["cat/1.png", "dog/2.png"]
        assert "splits: test is Test, train is everything else" in str(dataset.report)

    def test_several_test_parts_are_never_trained_on(self, tmp_path):
        parts = ("training_set", "private_test", "PublicTest")
        folder_of(tmp_path, [f"{part}/{c}/1.png" for part in parts for c in ("a", "b")])
        assert names(tmp_path) == ["training_set/a/1.png", "training_set/b/1.png"]
        dataset = build(tmp_path, split="test")
        assert (len(dataset), dataset.class_names) == (4, ["a", "b"])
        assert "test is PublicTest, private_test" in str(dataset.report)

    def test_a_further_test_part_is_neither_train_nor_test(self, tmp_path):
        folder_of(tmp_path, ["train/1.png", "test/2.png", "test_unlabeled/3.png"])
        assert names(tmp_path) == ["train/1.png"]
        assert names(tmp_path, split="test") == ["test/2.png"]
        folder_of(tmp_path / "b", ["cat/1.png", "test/2.png", "private_test/3.png"])
        assert names(tmp_path / "b") == ["cat/1.png"]

    def test_what_comes_with_an_image_is_no_training_image(self, tmp_path):
        folder_of(tmp_path, ["imagesTr/1.png", "imagesTs/2.png", "labelsTr/1.png"])
        assert names(tmp_path) == ["imagesTr/1.png"]

    def test_unclear_names_are_named(self, tmp_path):
        folder_of(tmp_path, ["seen/1.png", "Unseen_images/2.png"])
        report = str(build(tmp_path, num_held_out=0).report)
        assert "looking like splits, but not taken as such: seen, Unseen_images" in report
        folder_of(tmp_path / "b", ["tr/1.png", "va/2.png", "more/3.png"])
        report = str(build(tmp_path / "b", num_held_out=0).report)
        assert "not taken as such: tr, va" in report

    @pytest.mark.parametrize(
        "classes",
        [
            ("training shoes", "sandals", "boots"),
            ("test tubes", "beakers"),
            ("boots", "test tubes", "training shoes"),
            ("de", "tr", "us"),
            ("ca", "ny", "va"),
            ("en", "te", "ts"),
            ("unseen", "trees"),
        ],
    )
    def test_classes_are_no_splits(self, tmp_path, classes):
        folder_of(tmp_path, [f"{c}/{i}.png" for c in classes for i in (1, 2)])
        dataset = build(tmp_path, num_held_out=0)
        assert dataset.class_names == sorted(classes)
        assert len(dataset) == 2 * len(classes)
        assert "looking like" not in str(dataset.report)

    def test_the_directory_that_holds_everything_is_passed_through(self, tmp_path):
        folder_of(tmp_path, ["data/cat/1.png", "data/dog/2.png", "data/test/cat/3.png"])
        assert names(tmp_path) == ["data/cat/1.png", "data/dog/2.png"]

    def test_what_is_in_no_split_is_named(self, tmp_path):
        folder_of(tmp_path, ["train/1.png", "test/2.png", "extra/3.png", "4.png"])
        report = str(build(tmp_path).report)
        assert "2 files are left out, being in none of the splits: 4.png, extra/3.png" in report

    def test_only_test_images_are_not_trained_on(self, tmp_path):
        folder_of(tmp_path, ["test/1.png", "test/2.png"])
        with pytest.raises(DataError, match=r"no split 'train'.*it has test; to train on what"):
            build(tmp_path)
        assert len(build(tmp_path / "test", num_held_out=0)) == 2

    def test_file_names_that_look_like_splits_are_named(self, tmp_path):
        folder_of(tmp_path, ["train_1.png", "test_1.png"])
        report = str(build(tmp_path, num_held_out=0).report)
        assert "not divided by their own names, such as test_1.png, train_1.png" in report

    def test_names_that_say_nothing(self):
        for name in ("latest", "contest", "value", "trained", "train_test_split", "interval", ""):
            assert parse_split_name(name) is None
        assert parse_split_name("bullet_train") == ("train", "bullet")
        assert parse_split_name("train-abc", is_file=True) == ("train", "")

    def test_splits_of_the_hub(self):
        assert choose_split(["Train", "Testing", "validation"], "test", "x") == ("Testing", True)
        assert choose_split(["train", "eval"], "test", "x") == ("eval", True)
        assert choose_split(["train", "eval"], "val", "x") == ("eval", True)
        assert choose_split(["train", "unseen"], "unseen", "x") == ("unseen", True)
        assert choose_split(["all"], "test", "x") == ("all", False)


class TestLayouts:
    def test_parquet_in_directories_of_splits(self, tmp_path):
        for seed, name in enumerate(["Train/0.parquet", "Train/1.parquet", "Eval/0.parquet"]):
            parquet_of(tmp_path / name, image=[encoded(seed)])
        assert len(build(tmp_path)) == 2
        assert len(build(tmp_path, split="test")) == 1

    def test_unnamed_parquet_beside_test(self, tmp_path):
        parquet_of(tmp_path / "data.parquet", image=[encoded(0), encoded(1)])
        parquet_of(tmp_path / "TEST.parquet", image=[encoded(2)])
        assert (len(build(tmp_path)), len(build(tmp_path, split="test"))) == (2, 1)

    def test_shards_in_directories_of_splits(self, tmp_path):
        tar_of(tmp_path / "training" / "0.tar", {"a.png": encoded(0), "b.png": encoded(1)})
        tar_of(tmp_path / "holdout" / "0.tar", {"c.png": encoded(2)})
        assert names(tmp_path) == ["0.tar:a", "0.tar:b"]
        assert names(tmp_path, split="test") == ["0.tar:c"]
        assert names(f"{tmp_path}/*/*.tar", split="test") == ["0.tar:c"]


class TestInsideShards:
    @pytest.mark.parametrize("top", ["", "./", "data/"])
    @pytest.mark.parametrize(
        "pair", [("train", "test"), ("Train", "Test"), ("imagesTr", "imagesTs")]
    )
    def test_directories_divide_and_label(self, tmp_path, pair, top):
        parts = {part: [f"{top}{part}/c{k}/{k}" for k in range(2)] for part in pair}
        members = {f"{n}.png": encoded(k) for k, n in enumerate(chain(*parts.values()))}
        shard = tar_of(tmp_path / "a.tar", members)
        for split, part in zip(("train", "test"), pair):
            dataset = build(shard, split=split)
            found = [dataset.name_of(i) for i in range(len(dataset))]
            assert found == [f"a.tar:{name}" for name in parts[part]]
            assert dataset.class_names == ["c0", "c1"]
            assert dataset.labels.tolist() == [0, 1]
        assert build(shard, labels=False).labels is None

    def test_several_shards_are_divided_together(self, tmp_path):
        tar_of(tmp_path / "a.tar", {"train/0.png": encoded(0), "train/1.png": encoded(1)})
        tar_of(tmp_path / "b.tar", {"test/0.png": encoded(2), "extra/0.png": encoded(3)})
        assert names(tmp_path) == ["a.tar:train/0", "a.tar:train/1"]
        assert names(tmp_path, split="test") == ["b.tar:test/0"]
        assert "1 file is left out, being in none of the splits: extra/" in str(
            build(tmp_path).report
        )

    def test_test_beside_classes_and_look_alikes(self, tmp_path):
        shard = tar_of(tmp_path / "a.tar", {f"d/{n}/0.png": encoded(0) for n in ("cat", "test")})
        assert names(shard) == ["a.tar:d/cat/0"]
        shard = tar_of(tmp_path / "b.tar", {f"{n}/0.png": encoded(0) for n in ("seen", "unseen")})
        assert "not taken as such: seen, unseen" in str(build(shard, num_held_out=0).report)
        assert build(shard, num_held_out=0).labels is None

    def test_only_test_is_not_trained_on(self, tmp_path):
        shard = tar_of(tmp_path / "a.tar", {"test/0.png": encoded(0)})
        with pytest.raises(DataError, match="has no split 'train'"):
            build(shard)

    def test_a_shard_named_after_another_split(self, tmp_path):
        tar_of(tmp_path / "train.tar", {"train/0.png": encoded(0), "val/1.png": encoded(1)})
        tar_of(tmp_path / "test.tar", {"val/0.png": encoded(2)})
        with pytest.raises(DataError, match=r"train\.tar:val/1 is validation by what its shard"):
            build(tmp_path)
        assert len(build(tmp_path, split="test")) == 1

    def test_the_json_of_rows(self, tmp_path):
        members = {}
        for k, split in enumerate(("train", "Testing", "TRAIN", "val")):
            members |= {f"{k}.png": encoded(k), f"{k}.json": f'{{"split": "{split}"}}'.encode()}
        shard = tar_of(tmp_path / "a.tar", members)
        assert names(shard) == ["a.tar:0", "a.tar:2"]
        assert names(shard, split="test") == ["a.tar:1"]
        assert names(shard, split="validation") == ["a.tar:3"]
        tar_of(tmp_path / "b" / "train.tar", members)
        tar_of(tmp_path / "b" / "test.tar", {"0.png": encoded(0)})
        with pytest.raises(
            DataError, match=r"train\.tar:1 is test by what its shard holds, but train"
        ):
            build(tmp_path / "b")


class TestSplitColumns:
    @pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
    @pytest.mark.parametrize("column", ["split", "Split", "partition", "usage"])
    def test_metadata(self, tmp_path, kind, column):
        files = [f"{k % 2}/{k}.png" for k in range(5)]
        folder_of(tmp_path, files)
        values = ["train", "Test", "Training", "PrivateTest", "valid"]
        if kind == "parquet":
            parquet_of(tmp_path / "metadata.parquet", **{"file_name": files, column: values})
        elif kind == "jsonl":
            lines = [json.dumps({"file_name": f, column: v}) for f, v in zip(files, values)]
            write(tmp_path / "metadata.jsonl", "\n".join(lines))
        else:
            lines = [("file_name", column), *zip(files, values)]
            text = "\n".join(("\t" if kind == "tsv" else ",").join(line) for line in lines)
            write(tmp_path / f"metadata.{kind}", text)
        assert names(tmp_path) == ["0/0.png", "0/2.png"]
        assert names(tmp_path, split="test") == ["1/1.png", "1/3.png"]
        assert names(tmp_path, split="validation") == ["0/4.png"]
        dataset = build(tmp_path, split="test")
        assert (dataset.class_names, dataset.labels.tolist()) == (["0", "1"], [1, 1])
        assert f"those of column {column}" in str(dataset.report)

    def test_unknown_values_are_named(self, tmp_path):
        folder_of(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
        write(
            tmp_path / "metadata.csv", "file_name,split\n0.png,train\n1.png,test\n2.png,odd\n3.png,"
        )
        assert names(tmp_path) == ["0.png"]
        report = str(build(tmp_path).report)
        assert "column split says neither train nor test nor validation of 2 rows" in report
        assert "2 files are left out, being in none of the splits" in report
        assert "odd, empty" in report
        write(tmp_path / "metadata.csv", "file_name,split\n0.png,fold1\n1.png,fold2")
        dataset = build(tmp_path, num_held_out=0)
        assert len(dataset) == 2
        assert "column split is not taken for splits; its values are fold1, fold2" in str(
            dataset.report
        )
        write(tmp_path / "metadata.csv", "file_name,set\n0.png,train\n1.png,bus")
        assert len(build(tmp_path, num_held_out=0)) == 2

    def test_a_column_and_directories(self, tmp_path):
        folder_of(tmp_path, ["train/0.png", "test/1.png"])
        text = "file_name,split\ntrain/0.png,{}\ntest/1.png,test"
        write(tmp_path / "metadata.csv", text.format("training"))
        assert (names(tmp_path), names(tmp_path, split="test")) == (["train/0.png"], ["test/1.png"])
        write(tmp_path / "metadata.csv", text.format("test"))
        with pytest.raises(
            DataError, match=r"train/0\.png is test by column 'split', but train by"
        ):
            build(tmp_path)

    def test_two_entries_of_one_image(self, tmp_path):
        folder_of(tmp_path, ["0.png", "1.png"])
        write(tmp_path / "metadata.csv", "file_name,split\n0.png,train\n0.png,test\n1.png,test")
        with pytest.raises(DataError, match=r"column 'split' says both train and test of 0\.png"):
            build(tmp_path)

    def test_tables(self, tmp_path):
        images = [encoded(k) for k in range(5)]
        values = ["train", "test", "Training", "validation", None]
        file = parquet_of(tmp_path / "a.parquet", image=images, split=values, label=[0, 1, 2, 3, 4])
        assert names(file) == ["row 0", "row 2"]
        assert names(file, split="test") == ["row 1"]
        assert names(file, split="validation") == ["row 3"]
        dataset = build(file)
        assert dataset.labels.tolist() == [0, 2]
        assert "splits are those of column split: 1 test, 2 train, 1 validation" in str(
            dataset.report
        )
        assert "of 1 rows, but empty; they are left out" in str(dataset.report)
        parquet_of(tmp_path / "b" / "train.parquet", image=images, split=values)
        parquet_of(tmp_path / "b" / "test.parquet", image=images)
        with pytest.raises(
            DataError, match=r"row 1 of train is test by column 'split', but train by"
        ):
            build(tmp_path / "b")
        only = parquet_of(tmp_path / "c.parquet", image=images[:1], split=["test"])
        with pytest.raises(DataError, match="has no split 'train'"):
            build(only)


class TestMixtures:
    def test_what_is_beside_tables_is_named(self, tmp_path):
        folder_of(tmp_path, [f"imgs/i{k}.png" for k in range(5)])
        parquet_of(tmp_path / "notes.parquet", image=[encoded(k) for k in range(3)])
        dataset = build(tmp_path, num_held_out=0)
        assert len(dataset) == 3
        assert "5 files are not read: 5 .png" in str(dataset.report)
        tar_of(tmp_path / "x" / "0.tar", {"a.png": encoded(0)})
        assert "6 files are not read: 5 .png, 1 .tar" in str(build(tmp_path).report)

    def test_images_that_a_table_points_to_are_read(self, tmp_path):
        folder_of(tmp_path, ["imgs/a.png", "imgs/b.png", "imgs/c.png"])
        parquet_of(tmp_path / "train.parquet", image=["imgs/a.png"])
        parquet_of(tmp_path / "test.parquet", image=["imgs/b.png"])
        assert "1 files are not read: 1 .png" in str(build(tmp_path).report)

    @pytest.mark.parametrize("others", [("sub/n.parquet",), ("a.tar",), ("a.tar", "b/n.parquet")])
    def test_what_is_beside_images_is_named(self, tmp_path, others):
        folder_of(tmp_path, ["imgs/a.png", "imgs/b.png"])
        for name in others:
            write(tmp_path / name, "x")
        dataset = build(tmp_path, num_held_out=0)
        assert (dataset.report.name, len(dataset)) == ("folder/train", 2)
        assert f"{len(others)} files are not read: 1 ." in str(dataset.report)

    def test_tables_below_and_shards_above(self, tmp_path):
        parquet_of(tmp_path / "sub" / "n.parquet", image=[encoded(0), encoded(1)])
        tar_of(tmp_path / "a.tar", {"a.png": encoded(0)})
        dataset = build(tmp_path, num_held_out=0)
        assert len(dataset) == 2
        assert "1 files are not read: 1 .tar" in str(dataset.report)


class TestLinks:
    def test_a_link_upwards_is_not_followed(self, tmp_path):
        root = folder_of(tmp_path / "data", ["train/1.png", "train/2.png", "test/3.png"])
        write(tmp_path / "elsewhere.png", encoded(9))
        (root / "train" / "up").symlink_to("..")
        (root / "train" / "further").symlink_to(tmp_path)
        (root / "itself").symlink_to("itself")
        dataset = build(root)
        assert [dataset.name_of(i) for i in range(len(dataset))] == ["train/1.png", "train/2.png"]
        assert "2 linked directories are not followed" in str(dataset.report)
        assert "train/further, train/up" in str(dataset.report)

    def test_links_to_other_places_are_followed_once(self, tmp_path):
        folder_of(tmp_path / "pool", ["1.png", "2.png"])
        root = folder_of(tmp_path / "data", ["cat/0.png"])
        (root / "dog").symlink_to(tmp_path / "pool")
        (root / "hound").symlink_to(tmp_path / "pool")
        (tmp_path / "pool" / "back").symlink_to(root)
        assert names(root, num_held_out=0) == ["cat/0.png", "dog/1.png", "dog/2.png"]

    def test_test_that_is_a_link_to_train(self, tmp_path):
        folder_of(tmp_path, [f"train/{i}.png" for i in range(10)])
        (tmp_path / "test").symlink_to("train")
        train, test = (set(names(tmp_path, split=split)) for split in ("train", "test"))
        assert (len(train), len(test), train & test) == (9, 1, set())
        assert "test" in str(build(tmp_path).report)

    def test_splits_made_of_links(self, tmp_path):
        folder_of(tmp_path, [f"all/{c}/{i}.png" for c in "xyz" for i in (1, 2)])
        write(tmp_path / "all" / "x" / "1.txt", "one")
        for link in ("train/x", "train/z", "test/y"):
            (tmp_path / link).parent.mkdir(exist_ok=True)
            (tmp_path / link).symlink_to(f"../all/{link[-1]}")
        dataset = build(tmp_path)
        found = [dataset.name_of(i) for i in range(len(dataset))]
        assert found == ["train/x/1.png", "train/x/2.png", "train/z/1.png", "train/z/2.png"]
        assert dataset.captions_of(0) == ("one",)
        assert dataset.class_names == ["x", "y", "z"]
        report = str(dataset.report)
        assert "3 linked directories go by the names in their splits: train/x is all/x" in report
        assert "not followed" not in report
        assert names(tmp_path, split="test") == ["test/y/1.png", "test/y/2.png"]

    def test_metadata_of_splits_made_of_links(self, tmp_path):
        folder_of(tmp_path, ["all/x/1.png", "all/y/2.png"])
        write(tmp_path / "all/metadata.csv", "file_name,text\nx/1.png,one\ny/2.png,two\n")
        (tmp_path / "train").symlink_to("all/x")
        (tmp_path / "test").symlink_to("all/y")
        dataset = build(tmp_path)
        assert (len(dataset), dataset.captions_of(0)) == (1, ("one",))
        assert build(tmp_path, split="test").captions_of(0) == ("two",)

    def test_one_directory_linked_from_two_splits(self, tmp_path):
        folder_of(tmp_path / "a", ["all/x/1.png", "all/y/2.png"])
        for split in ("train", "test"):
            (tmp_path / "a" / split).symlink_to("all")
        folder_of(tmp_path / "pool", ["1.png"])
        folder_of(tmp_path / "b", [])
        (tmp_path / "b").mkdir()
        for split in ("train", "test"):
            (tmp_path / "b" / split).symlink_to(tmp_path / "pool")
        for root in ("a", "b"):
            with pytest.raises(DataError, match="are the same directory, by links"):
                build(tmp_path / root)
        folder_of(tmp_path / "c", ["train/1.png", "more/2.png"])
        for split in ("val", "test"):
            (tmp_path / "c" / split).symlink_to("more")
        assert names(tmp_path / "c") == ["train/1.png"]
        assert names(tmp_path / "c", split="test") == ["test/2.png"]
        assert "test and val are the same directory" in str(build(tmp_path / "c").report)

    def test_links_among_splits_stay_harmless(self, tmp_path):
        folder_of(tmp_path, ["train/1.png", "test/2.png", "cat/a/3.png", "cat/b/4.png"])
        for k, link in enumerate(("train/x", "test/x", "cat/a/x", "cat/b/x")):
            (tmp_path / link).symlink_to(tmp_path / ("test", "train", "cat/b", "cat/a")[k])
        assert names(tmp_path) == ["train/1.png"]
        assert names(tmp_path, split="test") == ["test/2.png"]

    def test_shards_and_tables_in_splits_made_of_links(self, tmp_path):
        for k, part in enumerate("xy"):
            tar_of(tmp_path / "s" / "all" / part / "0.tar", {"a.png": encoded(k)})
            parquet_of(tmp_path / "t" / "all" / part / "0.parquet", image=[encoded(k)] * (k + 1))
        for root in ("s", "t"):
            (tmp_path / root / "train").symlink_to("all/x")
            (tmp_path / root / "test").symlink_to("all/y")
            lengths = [len(build(tmp_path / root, split=split)) for split in ("train", "test")]
            assert lengths == [1, 1 if root == "s" else 2]

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_a_file_in_train_and_test_is_named(self, tmp_path, link):
        folder_of(tmp_path, ["train/1.png", "test/2.png"])
        link(tmp_path / "train" / "1.png", tmp_path / "test" / "3.png")
        link(tmp_path / "train" / "1.png", tmp_path / "train" / "again.png")
        dataset = build(tmp_path)
        assert len(dataset) == 2
        assert "1 image is in test and in train, by links: test/3.png is" in str(dataset.report)


class TestOtherFormats:
    def test_avif_is_read_and_others_are_counted(self, tmp_path):
        folder_of(tmp_path, ["a.png"])
        write(tmp_path / "b.AVIF", encoded(1, "avif"))
        for name in ("c.heic", "d.HEIC", "e.jxl", "f.svg", "notes", "a.txt"):
            write(tmp_path / name, "x")
        dataset = build(tmp_path, num_held_out=0)
        assert len(dataset) == 2
        assert dataset.has_captions
        expected = "5 files are not read: 2 .heic, 1 .jxl, 1 .svg, 1 without a suffix"
        assert expected in str(dataset.report)

    def test_a_folder_of_others_says_so(self, tmp_path):
        for i in range(3):
            write(tmp_path / f"{i}.heic", "x")
        with pytest.raises(DataError, match=r"holds no image \(3 files in it are not read: 3 \.h"):
            build(tmp_path)

    def test_shards(self, tmp_path):
        shard = tar_of(
            tmp_path / "x.tar",
            {"a.avif": encoded(0, "avif"), "b.heic": b"x", "c.jxl": b"x", "d.heic": b"x"},
        )
        report = str(build(shard, num_held_out=0).report)
        assert "3 rows have no image: x.tar:b, x.tar:c, x.tar:d" in report
        assert "3 members of shards are not read: 2 .heic, 1 .jxl" in report
        with pytest.raises(DataError, match=r"holds no image \(1 files are not read: 1 \.heic"):
            build(tar_of(tmp_path / "y.tar", {"a.heic": b"x"}))

    def test_listed_but_not_read(self, tmp_path):
        folder_of(tmp_path, ["a.png"])
        write(tmp_path / "b.heic", "x")
        write(tmp_path / "metadata.csv", "file_name,text\na.png,one\nb.heic,two\n")
        with pytest.raises(DataError, match=r"b\.heic \(listed in the metadata, but not read\)"):
            build(tmp_path, num_held_out=0)
