"""Places that are kept, as the command line writes them."""

import numpy as np
import pytest

from spectok import Level, TokenSpec
from spectok.errors import ConfigError, DataError
from spectok.token_files import write_tokens
from spectok_generation.cli.completion import parse_places, read_known


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("3", [0, 1, 2]),
        ("8", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("2:4", [2, 3]),
        ("6:", [6, 7]),
        (":1,3:5,4:6", [0, 3, 4, 5]),
    ],
)
def test_places_are_a_number_or_ranges(text, places):
    assert parse_places(text, 8).nonzero().flatten().tolist() == places


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "2:1", "0:9", "9", "0", "1:2:3"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="--keep"):
        parse_places(text, 8)


def test_images_of_a_file_are_taken_in_turn(tmp_path):
    spec = TokenSpec((Level((2, 2), 9),))
    indices = np.arange(8).reshape(2, 4)
    write_tokens(tmp_path / "tokens.npz", indices, ["a", "b"], spec)
    known = read_known(tmp_path / "tokens.npz", None, spec, 3)
    assert known.indices.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert known.keep.tolist() == [[True, True, False, False]] * 3
    file = str(tmp_path / "tokens.npz")
    assert known[1:].describe(1) == {"complete": file, "row": 0, "keep": "0:2"}
    write_tokens(tmp_path / "none.npz", indices[:0], [], spec)
    with pytest.raises(DataError, match="holds the tokens of no image"):
        read_known(tmp_path / "none.npz", None, spec, 3)
