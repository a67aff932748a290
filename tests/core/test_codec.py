"""Compressed files without a prior: exact, small, and refused when anything is wrong with them."""

import binascii
import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from spectok.codec import Codec
from spectok.codec.container import FRONT, MAGIC, read_contents
from spectok.codec.packing import Reader, pack, packed_size, unpack, write_number
from spectok.errors import CheckpointError, DataError, InputError, SpectokError
from spectok.images import save_picture, to_pil, to_uint8
from spectok.testing.small import small_tokenizer


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(1)
    return Codec(small_tokenizer("vqvae", codebook_size=24, image_size=8))


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def small_file(codec, images):
    return codec.compress(images[:2], names=["a.png", "b.png"])


def sealed(data):
    """Return bytes with a length and a checksum that fit, as somebody malicious would write."""
    body = bytearray(data[:-4])
    struct.pack_into("<I", body, 8, len(data))
    return bytes(body) + struct.pack("<I", binascii.crc32(bytes(body)))


# -- packing ---


@pytest.mark.parametrize("sizes", [[2], [1, 1], [24], [512, 3, 7], [1 << 20, 5], [1 << 62]])
def test_packed_values_come_back_in_as_few_bits_as_they_need(sizes):
    generator = np.random.default_rng(0)
    radices = np.tile(np.array(sizes), 700)
    values = generator.integers(0, radices)
    data = pack(values, radices)
    assert np.array_equal(unpack(data, radices), values)
    assert len(data) == packed_size(radices)
    bits = np.log2(radices).sum()
    assert bits <= 8 * len(data) <= bits + len(radices) / 256 + 1 + 8


def test_bytes_that_pack_never_writes_are_refused():
    radices = np.full(3, 5)  # 125 of 128 values in 7 bits
    with pytest.raises(DataError, match="out of range"):
        unpack(bytes([127 << 1]), radices)
    with pytest.raises(DataError, match="mean nothing"):
        unpack(bytes([1]), radices)
    with pytest.raises(DataError, match="2 bytes of packed values are not 1"):
        unpack(bytes(2), radices)
    assert pack(np.zeros(0, np.int64), np.zeros(0, np.int64)) == b""


def test_numbers_come_back_and_are_bounded():
    for value in (0, 1, 127, 128, 300, 1 << 40):
        assert Reader(write_number(value)).number(value, "n") == value
        if value:
            with pytest.raises(DataError, match="is over"):
                Reader(write_number(value)).number(value - 1, "n")
    for data in (b"", b"\x80", b"\xff" * 20):
        with pytest.raises(DataError):
            Reader(data).number(1 << 63, "n")


# -- files ---


def test_tokens_names_and_sizes_come_back(codec, images):
    spec = codec.tokenizer.token_spec
    names = [f"{i} ä.png" for i in range(5)]
    data = codec.compress(images, names=names)
    stored = codec.read(data)
    assert torch.equal(torch.cat(stored.indices), codec.tokenizer.encode(images))
    found = codec.decompress(data)
    assert found.names == names
    assert [tuple(image.shape) for image in found.images] == [(1, 8, 8)] * 5
    assert codec.decompress(codec.compress(images)).names is None
    many = codec.compress(images.repeat(40, 1, 1, 1))
    payload = len(many) - 2 * 200  # less two bytes of checks for each image
    assert 8 * payload < 1.01 * 200 * spec.bits_per_image + 8 * 40


def test_bytes_do_not_depend_on_what_is_compressed_together(codec, images):
    whole = codec.read(codec.compress(images))
    for i, image in enumerate(images):
        alone = codec.read(codec.compress([image]))
        assert torch.equal(alone.indices[0], whole.indices[i])
        first = next(codec.decode(alone))
        assert torch.equal(first, list(codec.decode(whole))[i])


def test_images_of_any_size_whole_or_in_tiles(codec):
    pictures = [torch.rand(1, *size) * 2 - 1 for size in ((8, 8), (13, 21), (4, 30), (13, 21))]
    for how in ({}, {"tile": 8}, {"tile": 8, "overlap": 0}, {"tile": 12, "overlap": 5}):
        found = codec.decompress(codec.compress(pictures, **how)).images
        assert [image.shape for image in found] == [picture.shape for picture in pictures]
    whole = codec.read(codec.compress(pictures[1:2]))
    assert whole.tilings[0].num_tiles == 1
    fixed = Codec(small_tokenizer("qgvae"))
    assert fixed.read(fixed.compress(pictures[1:2])).tilings[0].tile_size == (16, 16)


def test_what_does_not_fit_is_refused(codec, images):
    for arguments, options, message in [
        (([],), {}, "no images to compress"),
        ((torch.rand(2, 3, 8, 8),), {}, r"shape \(3, 8, 8\) is not \(1, H, W\)"),
        ((images,), {"names": ["a"]}, "1 names are not 5"),
        ((images,), {"labels": [0] * 5}, "nothing here takes classes"),
        ((images,), {"tile": 8, "overlap": 8}, "overlap 8"),
    ]:
        with pytest.raises(InputError, match=message):
            codec.compress(*arguments, **options)
    with pytest.raises(DataError, match="cannot be kept"):
        codec.compress(images[:1], names=["a\0b"])


def test_a_prefix_of_the_tokens_makes_a_smaller_file():
    levels = Codec(small_tokenizer("hrvqvae", image_size=8))
    spec, images = levels.tokenizer.token_spec, torch.rand(30, 1, 8, 8) * 2 - 1
    tokens = levels.tokenizer.encode(images)
    lengths = []
    for count in spec.decodable_prefixes:
        data = levels.compress(images, num_tokens=count)
        lengths.append(len(data))
        stored = levels.read(data)
        assert torch.equal(torch.cat(stored.indices), tokens[:, :count])
        wanted = to_uint8(levels.tokenizer.decode(tokens[:1], count))[0]
        off = next(levels.decode(stored)).int() - wanted.int()
        assert off.abs().max() <= 1
    assert lengths == sorted(set(lengths))
    with pytest.raises(InputError, match="does not decode on its own"):
        levels.compress(images, num_tokens=1)


# -- damage ---


def test_every_single_flipped_bit_is_found(codec, small_file):
    assert len(codec.read(small_file).indices) == 2
    for place in range(8 * len(small_file)):
        wrong = bytearray(small_file)
        wrong[place // 8] ^= 1 << place % 8
        with pytest.raises(SpectokError) as refused:
            codec.read(bytes(wrong))
        assert "\n" not in str(refused.value)


def test_each_kind_of_wrong_file_is_named(codec, small_file, images):
    newer = bytearray(small_file)
    newer[4] = 2
    torch.manual_seed(7)
    other = Codec(small_tokenizer("vqvae", codebook_size=24, image_size=8))
    for data, kind, message in [
        (b"", DataError, "is not a file that 'spectok compress' wrote"),
        (b"PK\3\4" + small_file[4:], DataError, "is not a file that"),
        (bytes(newer), DataError, "version 2 of the format"),
        (small_file + b"x", DataError, "bytes where"),
        (other.compress(images), CheckpointError, "written with another tokenizer"),
    ]:
        with pytest.raises(kind, match=message):
            codec.read(data)
    for length in range(4, len(small_file)):
        with pytest.raises(DataError, match="cut short"):
            codec.read(small_file[:length])


def test_claims_are_checked_before_memory_is_taken(codec, small_file, images):
    front = FRONT.pack(MAGIC, 1, 0, 0) + small_file[FRONT.size : FRONT.size + 8]
    huge = front + write_number(1) + write_number(60000) * 2 + bytes(6 + 100)
    many = front + write_number(1 << 40) + bytes(100)
    tiles = FRONT.pack(MAGIC, 1, 1 << 3, 0) + front[FRONT.size :] + write_number(1)
    tiles += b"".join(map(write_number, (8, 8, 7, 8000, 8000))) + bytes(6 + 100)
    tracemalloc.start()
    for data, message in [
        (huge, "3,600,000,000 pixels, over"),
        (many, "number of images"),
        (tiles, "tokens, over"),
    ]:
        with pytest.raises(DataError, match=message):
            codec.read(sealed(data + bytes(4)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(DataError, match="320 pixels, over 319"):
        codec.read(codec.compress(images), max_pixels=319)
    assert len(codec.read(codec.compress(images), max_pixels=320).indices) == 5


def fuzz(codec, small_file, count):
    """Check that damaged files with valid checksums are refused in one line, or are valid."""
    numbers, survivors, messages = random.Random(0), 0, []
    for _ in range(count):
        wrong = bytearray(small_file)
        for _ in range(numbers.randint(1, 4)):
            place = numbers.randrange(4, len(wrong))
            match numbers.randrange(3):
                case 0:
                    wrong[place] = numbers.randrange(256)
                case 1:
                    del wrong[place : place + numbers.randint(1, 8)]
                case _:
                    wrong[place:place] = numbers.randbytes(numbers.randint(1, 8))
            if len(wrong) < 24:
                break
        data = bytes(wrong) if numbers.random() < 0.2 or len(wrong) < 24 else sealed(bytes(wrong))
        try:
            codec.read(data, max_pixels=1 << 16)
            survivors += 1
        except SpectokError as error:
            messages.append(str(error))
    assert not any("\n" in message or len(message) > 400 for message in messages)
    assert len(messages) == count - survivors
    return survivors


def test_fuzzed_files_end_in_one_line(codec, small_file):
    assert fuzz(codec, small_file, 1500) < 1500 / 4  # a changed name is no damage once sealed


@pytest.mark.slow
def test_many_fuzzed_files_end_in_one_line(codec, small_file):
    assert fuzz(codec, small_file, 20000) < 20000 / 4


def test_the_parser_refuses_flags_and_versions_of_no_meaning(small_file):
    for place, value in ((4, 0), (6, 0xFF), (7, 1)):
        wrong = bytearray(small_file)
        wrong[place] = value
        with pytest.raises(DataError, match="no valid file of images: version"):
            read_contents(sealed(bytes(wrong)), 1 << 20)


# -- commands ---


def test_the_commands_compress_and_decompress(codec, run, refused, tmp_path):
    codec.tokenizer.save_pretrained(tmp_path / "model")
    for name, size in (("a.png", (8, 8)), ("b.png", (9, 30))):
        save_picture(to_pil(torch.rand(1, *size) * 2 - 1), tmp_path / "in" / name)
    status, out, err = run("compress", "model", "in", "--out", "x.stk")
    assert status == 0, err
    assert f"{(tmp_path / 'x.stk').stat().st_size:,} bytes" in out
    assert "next: spectok decompress model x.stk --out decompressed" in out
    assert run("decompress", "model", "x.stk", "--out", "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert run("compress", "model", "in", "--out", "y.stk", "--resize", "--no-names")[0] == 0
    assert run("decompress", "model", "y.stk", "--out", "numbered")[0] == 0
    assert (tmp_path / "numbered" / "000001.png").is_file()
    data = (tmp_path / "x.stk").read_bytes()
    (tmp_path / "cut.stk").write_bytes(data[:-9])
    assert "cut.stk: it is cut short" in refused("decompress", "model", "cut.stk", "--out", "no")
    assert not (tmp_path / "no").exists()
    before = (tmp_path / "in" / "a.png").read_bytes()
    told = refused("decompress", "model", "x.stk", "--out", "in")
    assert "in/a.png and 1 more would be overwritten; give another --out" in told
    assert (tmp_path / "in" / "a.png").read_bytes() == before
    save_picture(to_pil(torch.zeros(1, 1, 3)), tmp_path / "small" / "dot.png")
    for words, message in [
        (["compress", "model", "in", "--out", "z.stk", "--overlap", 2], "give --tile too"),
        (["compress", "model", "in", "--out", "z.stk", "--tile", 100000], "of at most 512 pixels"),
        (["compress", "model", "small", "--out", "z.stk"], "dot.png: images of 1×3 pixels"),
        (["compress", "model", "in", "--out", "x.zip"], "does not end in .stk"),
        (["compress", "model", "in", "--out", "z.stk", "--apart"], "give --prior too"),
        (["compress", "model", "in", "--out", "z.stk", "--resize", "--tile", 8], "give one"),
        (["decompress", "model", "none.stk", "--out", "no"], "none.stk does not exist"),
        (["decompress", "model", "x.stk", "--out", "no", "--max-pixels", 9], "pixels, over 9"),
    ]:
        assert message in refused(*words)
