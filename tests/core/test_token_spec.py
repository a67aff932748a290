"""TokenSpec: layout, vocabularies, codes of three kinds of codebook, prefixes, JSON."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import TokenError

GRID = TokenSpec((Level((4, 4), 512),))
GLOBAL = TokenSpec((Level((6,), 64, "position", 6),), prefix="tokens")
SHARED_OUT = TokenSpec((Level((6,), 5, "position", 3),))
TWO_GRIDS = TokenSpec((Level((2, 2), 7), Level((4, 4), 11)), prefix="levels")
TREE = TokenSpec((Level((2, 2), 3), Level((2, 2), 4, "path"), Level((2, 2), 5, "path")))
BY_PLACE = TokenSpec(TREE.levels, order="position")
RESIDUAL = TokenSpec((Level((3,), 8), Level((3,), 16)), order="position", prefix="tokens")
ALL = [GRID, GLOBAL, SHARED_OUT, TWO_GRIDS, TREE, BY_PLACE, RESIDUAL]


def draw(spec, batch=3):
    limits = torch.tensor(spec.vocab_sizes)
    return (torch.rand(batch, spec.num_tokens) * limits).long()


# -- sizes ---


def test_sizes_of_two_levels():
    assert TWO_GRIDS.num_tokens == 20
    assert TWO_GRIDS.num_levels == 2
    assert TWO_GRIDS.max_vocab_size == 11
    assert TWO_GRIDS.vocab_sizes == (7,) * 4 + (11,) * 16
    assert TWO_GRIDS.level_of_place == (0,) * 4 + (1,) * 16
    assert TWO_GRIDS.position_of_place == (*range(4), *range(16))


def test_sizes_in_order_of_position():
    assert RESIDUAL.vocab_sizes == (8, 16) * 3
    assert RESIDUAL.level_of_place == (0, 1) * 3
    assert RESIDUAL.position_of_place == (0, 0, 1, 1, 2, 2)


def test_bits_per_image():
    assert GRID.bits_per_image == 16 * 9
    assert TWO_GRIDS.bits_per_image == pytest.approx(4 * math.log2(7) + 16 * math.log2(11))


def test_a_spec_is_a_value():
    assert TokenSpec([Level([4, 4], 512)]) == GRID
    assert hash(TokenSpec((Level((4, 4), 512),))) == hash(GRID)
    with pytest.raises(AttributeError):
        GRID.order = "position"


# -- layout ---


@pytest.mark.parametrize("spec", ALL)
def test_flatten_and_unflatten_are_inverse(spec):
    indices = draw(spec)
    levels = spec.unflatten(indices)
    assert [tuple(part.shape[1:]) for part in levels] == [level.shape for level in spec.levels]
    assert torch.equal(spec.flatten(levels), indices)


@pytest.mark.parametrize("spec", ALL)
def test_places_say_where_flatten_puts_each_index(spec):
    marked = [
        (1000 * i + torch.arange(level.num_tokens)).view(1, *level.shape)
        for i, level in enumerate(spec.levels)
    ]
    wanted = [1000 * i + p for i, p in zip(spec.level_of_place, spec.position_of_place)]
    assert spec.flatten(marked)[0].tolist() == wanted


def test_a_grid_is_read_in_raster_order():
    rows = torch.arange(16).view(1, 4, 4)
    assert GRID.flatten([rows])[0].tolist() == list(range(16))


def test_flatten_names_the_wrong_level():
    with pytest.raises(TokenError, match="got 1 levels; this TokenSpec has 2"):
        TWO_GRIDS.flatten([torch.zeros(1, 2, 2, dtype=torch.int64)])
    wrong = [torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 4, 3, dtype=torch.int64)]
    with pytest.raises(TokenError, match=r"level 1: shape \(4, 3\) is not \(4, 4\)"):
        TWO_GRIDS.flatten(wrong)


# -- validation ---


@pytest.mark.parametrize("spec", ALL)
def test_indices_inside_the_spec_are_valid(spec):
    spec.validate(draw(spec))
    spec.validate(torch.tensor([spec.vocab_sizes]) - 1)
    spec.validate(torch.zeros(0, spec.num_tokens, dtype=torch.int64))


@pytest.mark.parametrize("value", [-1, 11, 10**12])
def test_an_index_out_of_range_is_named_with_place_and_range(value):
    indices = torch.zeros(2, 20, dtype=torch.int64)
    indices[1, 6] = value
    with pytest.raises(TokenError) as caught:
        TWO_GRIDS.validate(indices)
    message = str(caught.value)
    assert f"index {value} of image 1 at place 6 (level 1, position 2)" in message
    assert "outside 0..10" in message


def test_each_place_has_its_own_limit():
    indices = torch.full((1, 20), 8)
    with pytest.raises(TokenError, match=r"at place 0 .*outside 0\.\.6"):
        TWO_GRIDS.validate(indices)


def test_type_and_length_are_checked():
    with pytest.raises(TokenError, match=r"dtype torch.int32; int64 is required: use .long\(\)"):
        GRID.validate(torch.zeros(1, 16, dtype=torch.int32))
    with pytest.raises(TokenError, match="are a list, not a tensor"):
        GRID.validate([[0] * 16])
    for shape in ((1, 15), (16,), (1, 4, 4)):
        with pytest.raises(TokenError) as caught:
            GRID.validate(torch.zeros(shape, dtype=torch.int64))
        assert f"{shape} are not (B, 16)" in str(caught.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Level((2, 2, 2), 4), "must be (T,) or (h, w)"),
        (lambda: Level((0,), 4), "positive sizes"),
        (lambda: Level((4,), 0), "vocab_size 0"),
        (lambda: Level((4,), 4, "own"), "codebook 'own'"),
        (lambda: Level((4,), 4, "shared", 2), "num_codebooks 2 needs codebook='position'"),
        (lambda: Level((6,), 4, "position", 4), "6 tokens cannot be shared out among 4"),
        (lambda: TokenSpec(()), "at least one level"),
        (lambda: TokenSpec((Level((4,), 4, "path"),)), "level 0 has no level above it"),
        (lambda: TokenSpec(TWO_GRIDS.levels, order="position"), "need equal shapes"),
        (lambda: TokenSpec((Level((4,), 4), Level((2,), 4, "path"))), "need equal shapes"),
        (lambda: TokenSpec(GRID.levels, order="random"), "order 'random'"),
        (lambda: TokenSpec(GRID.levels, prefix="some"), "prefix 'some'"),
        (
            lambda: TokenSpec(TREE.levels, order="position", prefix="levels"),
            "prefix='levels' needs order='level'",
        ),
        (
            lambda: TokenSpec(RESIDUAL.levels, prefix="tokens"),
            "prefix='tokens' of several levels needs order='position'",
        ),
    ],
)
def test_an_impossible_spec_says_why(build, words):
    with pytest.raises(TokenError) as caught:
        build()
    assert words in str(caught.value)


# -- prefixes ---


def test_decodable_prefixes():
    assert GRID.decodable_prefixes == (16,)
    assert GLOBAL.decodable_prefixes == tuple(range(7))
    assert TWO_GRIDS.decodable_prefixes == (4, 20)
    assert RESIDUAL.decodable_prefixes == (0, 2, 4, 6)


# -- codes as one vocabulary ---


def owner(spec, level, position):
    """Say which codebook a place of a level without paths uses."""
    run = spec.levels[level].num_tokens // spec.levels[level].num_codebooks
    return position // run if spec.levels[level].codebook == "position" else 0


@pytest.mark.parametrize("spec", [GRID, GLOBAL, SHARED_OUT, TWO_GRIDS, RESIDUAL])
def test_code_ids_tell_apart_exactly_the_codes_that_differ(spec):
    ids = {}
    for value in range(spec.max_vocab_size):
        indices = torch.tensor([spec.vocab_sizes]).sub(1).clamp_max(value)
        found = spec.code_ids(indices)[0].tolist()
        for place, number in enumerate(found):
            level, position = spec.level_of_place[place], spec.position_of_place[place]
            code = (level, owner(spec, level, position), int(indices[0, place]))
            assert ids.setdefault(number, code) == code
    assert len(set(ids.values())) == len(ids) == spec.num_codes
    assert sorted(ids) == list(range(spec.num_codes))


@pytest.mark.parametrize("spec", [TREE, BY_PLACE])
def test_path_code_ids_are_the_nodes_of_the_tree(spec):
    assert spec.num_codes == 3 + 3 * 4 + 3 * 4 * 5
    nodes = {}
    for path in itertools.product(range(3), range(4), range(5)):
        levels = [torch.full((1, 2, 2), value) for value in path]
        for place, number in enumerate(spec.code_ids(spec.flatten(levels))[0].tolist()):
            node = path[: spec.level_of_place[place] + 1]
            assert nodes.setdefault(number, node) == node
    assert sorted(nodes) == list(range(spec.num_codes))
    assert len(set(nodes.values())) == spec.num_codes


@pytest.mark.parametrize("spec", ALL)
def test_code_ids_of_a_prefix_are_a_prefix_of_the_code_ids(spec):
    indices = draw(spec)
    whole = spec.code_ids(indices)
    for k in range(spec.num_tokens + 1):
        assert torch.equal(spec.code_ids(indices[:, :k]), whole[:, :k])


# -- JSON ---


@pytest.mark.parametrize("spec", ALL)
def test_json_round_trip(spec):
    text = json.dumps(spec.to_dict())
    again = TokenSpec.from_dict(json.loads(text))
    assert again == spec
    assert again.vocab_sizes == spec.vocab_sizes


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"levels": [{"shape": [4]}]},
        {"levels": [{"shape": [4], "vocab_size": 4, "size": 1}]},
        {"levels": [{"shape": 4, "vocab_size": 4}]},
        {"levels": [{"shape": [4], "vocab_size": 4}], "ordering": "level"},
    ],
)
def test_other_json_is_refused(data):
    with pytest.raises(TokenError):
        TokenSpec.from_dict(data)


LEVEL = {"shape": [2, 2], "vocab_size": 8, "codebook": "shared", "num_codebooks": 1}


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": s} for s in ([], [1, 2, 3], [0, 2], [-1], [2.0, 2], [math.inf], [math.nan])),
        *(
            {"shape": s}
            for s in ("44", None, 4, {}, [True, 2], [None], [[2]], ["2", "2"], [10**12])
        ),
        *({"vocab_size": v} for v in (0, -1, True, "8", 8.0, math.nan, None, [8], 1 << 63, 10**30)),
        *({"num_codebooks": n} for n in (0, -1, True, 2.0, None, "1", 10**30)),
        *({"codebook": c} for c in (None, [], {}, 1, "x" * 10_000)),
        *({"more": 1}, {"shape": [1 << 20, 2]}),
    ],
)
def test_a_layout_that_cannot_be_is_one_short_line(change):
    with pytest.raises(TokenError) as caught:
        TokenSpec.from_dict({"levels": [LEVEL | change]})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        *(
            None,
            [],
            "x",
            3,
            {},
            {"levels": None},
            {"levels": []},
            {"levels": "ab"},
            {"levels": [1]},
        ),
        *({"levels": [LEVEL], "order": o} for o in (None, [], {}, "x", 1)),
        *({"levels": [LEVEL], "prefix": p} for p in (None, [], {}, "x", 1)),
        {"levels": [LEVEL], "": 1},
        {"levels": [LEVEL | {"shape": [1]}] * 2_000},
        {"levels": [LEVEL, *[LEVEL | {"codebook": "path"}] * 30]},
    ],
)
def test_what_is_no_layout_is_one_short_line(data):
    with pytest.raises(TokenError) as caught:
        TokenSpec.from_dict(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
