"""The token cache: bits, fingerprints, and shares of several processes."""

import dataclasses
import hashlib
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from spectok import Level, TokenSpec, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, DataError
from spectok.modeling import model_fingerprint
from spectok_generation import TokenCache, extract_tokens
from spectok_generation.extraction import Extraction
from spectok_generation.records import tokenizer_record
from spectok_generation.tokens import index_width, pack, unpack

DIGITS = DataConfig(name="digits", limit=21)


def digits(**options):
    return build_dataset(DIGITS.model_copy(update=options), train=bool(options))


@pytest.mark.parametrize("width", [1, 3, 5, 7, 8, 9, 11, 13, 17, 31])
def test_packed_indices_come_back(width):
    rng = np.random.default_rng(width)
    for count in (1, 2, 7, 64):
        indices = rng.integers(0, 1 << width, (5, count))
        indices[0], indices[1] = 0, (1 << width) - 1
        rows = pack(indices, width)
        assert rows.shape == (5, -(-count * width // 8))
        assert np.array_equal(unpack(rows, count, width), indices)


@pytest.mark.parametrize(("vocab", "bits"), [(1, 1), (2, 1), (3, 2), (64, 6), (65, 7), (1024, 10)])
def test_an_index_takes_as_few_bits_as_its_vocabulary_needs(vocab, bits):
    assert index_width(TokenSpec((Level((2,), 2), Level((2,), vocab)))) == max(1, bits)


def test_a_cache_holds_what_the_tokenizer_says(any_tokenizer, tmp_path, checked_shapes):
    tokenizer, dataset = load_tokenizer(any_tokenizer), digits()
    done = []
    cache = extract_tokens(
        tokenizer, dataset, tmp_path / "c", Extraction(batch_size=8), on_images=done.append
    )
    assert sum(done) == len(cache) == 21
    assert TokenCache(tmp_path / "c").token_spec == tokenizer.token_spec
    images = torch.stack([dataset[i]["images"] for i in range(21)])
    assert torch.equal(
        torch.stack([cache[i]["indices"] for i in range(21)]), tokenizer.encode(images)
    )
    assert [cache[i]["label"] for i in range(21)] == dataset.labels.tolist()
    assert cache.num_classes == 10
    batch = next(iter(DataLoader(cache, batch_size=4)))
    assert batch["indices"].dtype == torch.int64
    assert batch["indices"].shape == (4, tokenizer.token_spec.num_tokens)
    size = (tmp_path / "c" / "tokens.bin").stat().st_size
    width = index_width(tokenizer.token_spec)
    assert size == 21 * -(-tokenizer.token_spec.num_tokens * width // 8)


def test_captions_are_kept(tmp_path):
    config = DataConfig(name="shapes", image_size=16, channels=1, limit=6)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(
        "vqvae", image_size=16, in_channels=1, codebook_size=8, codebook_dim=4, channels=8
    )
    dataset = build_dataset(config, train=False)
    cache = extract_tokens(tokenizer, dataset, tmp_path / "c")
    assert [cache[i]["caption"] for i in range(6)] == [dataset[i]["caption"] for i in range(6)]


class Told:
    """Images with several captions each."""

    def __init__(self, dataset, captions):
        self.dataset, self.captions, self.has_captions = dataset, captions, True

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        return self.dataset[index] | {"caption": self.captions[index][0]}

    def captions_of(self, index):
        return self.captions[index]


@pytest.mark.parametrize("copies", [1, 2, 3, 6])
def test_every_caption_of_an_image_has_its_turn(tokenizer_folder, tmp_path, copies):
    told = Told(digits(limit=2), [("a", "b", "c"), ("d",)])
    extract_tokens(load_tokenizer(tokenizer_folder), told, tmp_path / "c", Extraction(copies))
    cache = TokenCache(tmp_path / "c", seed=3)
    assert cache.captions == told.captions * copies
    assert [cache[row]["caption"] for row in range(2 * copies)] == ["a", "d"] * copies
    seen = []  # what training sees of the first image, in order
    for epoch in range(12):
        cache.set_epoch(epoch)
        items = [cache[row] for row in range(0, 2 * copies, 2)]
        assert all("abc"[item["caption_number"]] == item["caption"] for item in items)
        seen += [item["caption"] for item in items]
        assert cache[1]["caption"] == "d"
    rounds = [tuple(seen[start : start + 3]) for start in range(0, len(seen), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1


def test_copies_are_augmented_each_in_its_own_way(tokenizer_folder, tmp_path):
    tokenizer, dataset = load_tokenizer(tokenizer_folder), digits(max_shift=2)
    how = Extraction(copies=3, augmentation="shift 2", batch_size=8)
    cache = extract_tokens(tokenizer, dataset, tmp_path / "c", how)
    assert len(cache) == 63
    for epoch in range(3):
        dataset.set_epoch(epoch)
        images = torch.stack([dataset[i]["images"] for i in range(21)])
        rows = torch.from_numpy(cache.indices(slice(21 * epoch, 21 * epoch + 21)))
        assert torch.equal(rows, tokenizer.encode(images))
    assert [cache[i + 42]["label"] for i in range(21)] == dataset.labels.tolist()


def test_a_finished_cache_is_used_again_and_no_other(tokenizer_folder, tmp_path):
    tokenizer, folder = load_tokenizer(tokenizer_folder), tmp_path / "c"
    extract_tokens(tokenizer, digits(), folder)
    written = (folder / "tokens.bin").stat().st_mtime_ns
    extract_tokens(load_tokenizer(tokenizer_folder), digits(), folder)
    assert (folder / "tokens.bin").stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match="from other images"):
        extract_tokens(tokenizer, digits(limit=20), folder)
    next(tokenizer.parameters()).data.view(-1)[0] += 1
    with pytest.raises(CheckpointError, match="from the same images"):
        extract_tokens(tokenizer, digits(), folder)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="something other than a token cache"):
        extract_tokens(tokenizer, digits(), tmp_path / "notes")


def test_tokens_of_other_weights_are_refused(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    cache = extract_tokens(tokenizer, digits(), tmp_path / "c", path="first")
    cache.check_tokenizer(tokenizer_record(tokenizer, "elsewhere"))
    next(tokenizer.parameters()).data.view(-1)[0] += 1e-3
    with pytest.raises(CheckpointError, match=r"made by the \w+ in first .* not by .* in second"):
        cache.check_tokenizer(tokenizer_record(tokenizer, "second"))


def test_a_fingerprint_is_of_class_options_and_every_weight(any_tokenizer, tmp_path):
    tokenizer = load_tokenizer(any_tokenizer)
    first = model_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path / "again")
    assert model_fingerprint(load_tokenizer(tmp_path / "again")) == first
    for name, value in tokenizer.state_dict().items():
        old = value.clone()
        value.view(-1)[-1] += 1
        assert model_fingerprint(tokenizer) != first, name
        value.copy_(old)
    assert model_fingerprint(tokenizer) == first


def test_damaged_caches_are_refused(tokenizer_folder, tmp_path):
    folder = tmp_path / "c"
    extract_tokens(load_tokenizer(tokenizer_folder), digits(), folder)
    tokens, header = folder / "tokens.bin", folder / "header.json"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointError, match=f"{len(content) - 1} bytes instead of {len(content)}"
    ):
        TokenCache(folder)
    tokens.write_bytes(content)
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        TokenCache(folder)
    header.unlink()
    with pytest.raises(CheckpointError, match="holds no token cache"):
        TokenCache(folder)
    with pytest.raises(CheckpointError, match="something other than a token cache"):
        extract_tokens(load_tokenizer(tokenizer_folder), digits(), folder)


def test_images_must_fit(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    with pytest.raises(DataError, match=r"shape \(1, 8, 8\) do not fit .* \(1, 16, 16\)"):
        extract_tokens(tokenizer, digits(image_size=8), tmp_path / "c")
    with pytest.raises(DataError, match="0 copies"):
        extract_tokens(tokenizer, digits(), tmp_path / "c", Extraction(copies=0))
    assert not (tmp_path / "c").exists()


def extract_rank(tokenizer_folder, directory):
    from spectok.training import TrainConfig
    from spectok.training.launch import accelerated

    with accelerated(TrainConfig(), directory):
        how = Extraction(copies=2, augmentation="shift 1", batch_size=4)
        extract_tokens(load_tokenizer(tokenizer_folder), digits(max_shift=1), directory, how)


def test_two_processes_write_what_one_writes(tokenizer_folder, tmp_path, fork_ranks):
    extract_rank(tokenizer_folder, tmp_path / "one")
    assert fork_ranks(extract_rank, tokenizer_folder, tmp_path / "two") == [0, 0]
    one, two = (TokenCache(tmp_path / name) for name in ("one", "two"))
    assert dataclasses.asdict(one.header) == dataclasses.asdict(two.header)
    for name in ("tokens.bin", "labels.bin"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def damaged(cache, name, change):
    """Return a cache's folder after one of its files was changed."""
    path = cache.directory / name
    path.write_bytes(change(path.read_bytes()))
    return cache.directory


def without_hashes(cache):
    """Make a cache as earlier versions wrote them."""
    path = cache.directory / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hashes": None}))


@pytest.fixture
def cache(tmp_path):
    spec = TokenSpec((Level((4,), 12),))
    header = {
        **{"token_spec": spec.to_dict(), "count": 3, "num_classes": 2, "data": "d", "format": 1},
        **{"tokenizer": {"fingerprint": "f" * 64, "class": "T", "path": None}},
    }
    (tmp_path / "tokens.bin").write_bytes(pack(np.full((3, 4), 11), 4).tobytes())
    (tmp_path / "labels.bin").write_bytes(np.array([0, 1, 1], dtype="<i8").tobytes())
    names = ("tokens.bin", "labels.bin")
    hashes = {n: hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in names}
    (tmp_path / "header.json").write_text(json.dumps(header | {"hashes": hashes}))
    return TokenCache(tmp_path)


@pytest.mark.parametrize("name", ["tokens.bin", "labels.bin"])
def test_a_flipped_bit_is_found_when_a_cache_is_opened(cache, name):
    folder = damaged(cache, name, lambda content: bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CheckpointError, match=f"{name} is damaged: its bytes are not those"):
        TokenCache(folder)


def test_an_index_outside_the_vocabulary_is_named_in_a_cache_without_hashes(cache):
    without_hashes(cache)
    folder = damaged(cache, "tokens.bin", lambda content: content[:2] + b"\xff" + content[3:])
    with pytest.raises(CheckpointError, match=r"index 15 at place 0 is outside 0\.\.11"):
        TokenCache(folder)[1]
    assert TokenCache(folder)[0]["indices"].tolist() == [11] * 4


@pytest.mark.parametrize("label", [-1, 2, 1 << 40])
def test_a_label_outside_the_classes_is_named_in_a_cache_without_hashes(cache, label):
    without_hashes(cache)
    labels = np.array([0, label, 1], dtype="<i8").tobytes()
    with pytest.raises(CheckpointError, match=rf"label {label} is outside 0\.\.1"):
        TokenCache(damaged(cache, "labels.bin", lambda _: labels))


@pytest.mark.parametrize(
    "change",
    [
        *({"count": n} for n in (-1, 1.0, True, "3", None, [], 10**30, 1 << 62)),
        *({"token_spec": s} for s in (None, [], {}, {"levels": [{"shape": ["inf"]}]})),
        *({"tokenizer": t} for t in (None, "x", [], {"fingerprint": 3}, {"path": []})),
        *({"num_classes": n} for n in (-1, True, "x", 1e300)),
        *({"class_names": n} for n in ("ab", [1, 2], ["a"], {})),
        *({"has_captions": h} for h in (1, "x", None)),
        *(
            {"data": None},
            {"format": "1"},
            {"format": 99},
            {"hashes": {"tokens.bin": 1}},
            {"more": 1},
        ),
        {"hashes": {"../../no.bin": "0"}},
    ],
)
def test_a_header_that_cannot_be_is_one_short_line(cache, change):
    path = cache.directory / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        TokenCache(cache.directory)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_extraction_that_was_stopped_goes_on(tokenizer_folder, tmp_path, fork):
    """What was written is kept up to the last whole batch, whatever was half-written after it."""
    tokenizer, how = load_tokenizer(tokenizer_folder), Extraction(2, "shift 1", batch_size=4)

    def stop_after(count):
        done = []

        def on_images(number):
            done.append(number)
            if sum(done) >= count:
                os.kill(os.getpid(), signal.SIGKILL)

        extract_tokens(tokenizer, digits(max_shift=1), tmp_path / "b", how, on_images=on_images)

    extract_tokens(tokenizer, digits(max_shift=1), tmp_path / "a", how)
    process = fork(stop_after, 30)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    share = tmp_path / "b.partial" / "tokens.bin.0"
    row = (tmp_path / "a" / "tokens.bin").stat().st_size // 42
    share.write_bytes((tmp_path / "a" / "tokens.bin").read_bytes()[: 26 * row] + b"torn")
    labels = (tmp_path / "a" / "labels.bin").read_bytes()
    (tmp_path / "b.partial" / "labels.bin.0").write_bytes(labels[: 28 * 8])
    done = []
    extract_tokens(tokenizer, digits(max_shift=1), tmp_path / "b", how, on_images=done.append)
    assert done == [25, 4, 4, 4, 4, 1]  # 21 of the first copy, and a whole batch of the second
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    for name in names:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_two_extractions_do_not_share_a_folder(tokenizer_folder, tmp_path, fork):
    def slowly():
        how = Extraction(batch_size=4)
        extract_tokens(
            load_tokenizer(tokenizer_folder), digits(), tmp_path / "c", how,
            on_images=lambda _: time.sleep(60),
        )  # fmt: skip

    first = fork(slowly)
    while not (tmp_path / "c.partial" / "plan.json").exists():
        assert first.is_alive()
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match=f"is in use by process {first.pid}"):
        extract_tokens(load_tokenizer(tokenizer_folder), digits(), tmp_path / "c")
