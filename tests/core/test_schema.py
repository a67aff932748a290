"""The constructor signature is the schema: one line per problem, with its path and a way out."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from spectok import load_tokenizer
from spectok.errors import ConfigError
from spectok.recipes.options import validate_named, validate_options
from spectok.recipes.schema import QuantizerOption, section_model


class Example:
    def __init__(
        self,
        size: Annotated[int, Field(ge=4)] = 32,
        rate: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        mode: Literal["l1", "l2"] = "l2",
        widths: tuple[int, ...] = (1, 2),
        flag: bool = False,
        limit: int | None = None,
        quantizer: QuantizerOption = "ema",
    ):
        pass


class NeedsOne:
    def __init__(self, size: int, name: str = "x"):
        pass


def problem(options: dict[str, Any], function: Any = Example) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_options(function, options, "tokenizer")
    return str(caught.value)


def test_defaults_are_filled_in_as_plain_json_types():
    options = validate_options(Example, {"widths": [3]}, "tokenizer")
    quantizer = options.pop("quantizer")
    assert options == {
        "size": 32,
        "rate": 0.5,
        "mode": "l2",
        "widths": [3],
        "flag": False,
        "limit": None,
    }
    assert quantizer["name"] == "ema"
    assert quantizer["decay"] == 0.99


def test_resolved_options_validate_to_themselves():
    options = validate_options(Example, {"quantizer": {"name": "voronoi"}}, "tokenizer")
    assert validate_options(Example, options, "tokenizer") == options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sise": 8}, "tokenizer.sise: unknown key (did you mean 'size'?); known: size, rate"),
        ({"size": 3}, "tokenizer.size: Input should be greater than or equal to 4 (got 3)"),
        ({"size": "32"}, "tokenizer.size: Input should be a valid integer (got '32')"),
        ({"size": 32.0}, "tokenizer.size: Input should be a valid integer (got 32.0)"),
        ({"size": True}, "tokenizer.size: Input should be a valid integer (got True)"),
        ({"rate": 1.0}, "tokenizer.rate: Input should be less than 1 (got 1.0)"),
        ({"rate": math.nan}, "tokenizer.rate: Input should be"),
        ({"mode": "l3"}, "tokenizer.mode: Input should be 'l1' or 'l2' (got 'l3')"),
        ({"flag": 1}, "tokenizer.flag: Input should be a valid boolean (got 1)"),
        ({"widths": 3}, "tokenizer.widths"),
        ({"widths": [1, "a"]}, "tokenizer.widths.1"),
        (
            {"quantizer": {"name": "ema", "decayy": 0.9}},
            "tokenizer.quantizer.decayy: unknown key (did you mean 'decay'?)",
        ),
        ({"quantizer": {"name": "ema", "decay": 2.0}}, "tokenizer.quantizer.decay: Input should"),
        ({"quantizer": "emma"}, "tokenizer.quantizer.name: unknown quantizer 'emma'"),
        ({"quantizer": {"name": "ema", "dim": 4}}, "tokenizer.quantizer.dim: unknown key"),
        ({"quantizer": 3}, "tokenizer.quantizer"),
    ],
)
def test_a_problem_is_one_line_with_its_path(options, words):
    message = problem(options)
    assert words in message
    assert all(line.startswith("tokenizer.") for line in message.splitlines())


def test_every_problem_is_reported_at_once():
    lines = problem({"sise": 8, "rate": 2.0, "mode": "l3"}).splitlines()
    assert len(lines) == 3


def test_an_argument_without_default_is_required():
    assert problem({}, NeedsOne) == "tokenizer.size: Field required"


def test_options_without_a_name_are_those_of_the_default():
    options = validate_options(Example, {"quantizer": {"decay": 0.5}}, "tokenizer")
    assert options["quantizer"]["name"] == "ema"
    assert options["quantizer"]["decay"] == 0.5


def test_what_the_caller_supplies_is_not_an_option():
    model = section_model(NeedsOne, ("size",))
    assert list(model.model_fields) == ["name"]


def test_validate_named_takes_a_name_or_a_mapping():
    assert validate_named("quantizer", "vq") == validate_named("quantizer", {"name": "vq"})
    for value in (3, None, {"decay": 0.9}, {"name": 3}):
        with pytest.raises(ConfigError, match="quantizer: needs a name"):
            validate_named("quantizer", value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"imagesize": 32}, "vqvae.imagesize: unknown key (did you mean 'image_size'?)"),
        ({"image_size": 2}, "vqvae.image_size: Input should be greater than or equal to 4"),
        ({"quantizer": {"name": "ema", "decayy": 1}}, "vqvae.quantizer.decayy: unknown key"),
    ],
)
def test_load_tokenizer_validates_its_options(options, words):
    with pytest.raises(ConfigError) as caught:
        load_tokenizer("vqvae", **options)
    assert words in str(caught.value)


def test_a_size_that_does_not_divide_names_one_that_does():
    with pytest.raises(ValueError, match=r"image_size 30 is not divisible .* e\.g\. 32"):
        load_tokenizer("vqvae", image_size=30, downsample_factor=4)


def test_a_list_stands_for_a_tuple_also_beside_other_types():
    def build(one: int | tuple[int, ...] = 4, some: tuple[int, ...] | None = None) -> None: ...

    for given in (8, [4, 2], (4, 2)):
        assert validate_options(build, {"one": given}, "x")["one"] in (8, [4, 2])
    assert validate_options(build, {"some": [1, 2]}, "x")["some"] == [1, 2]
    with pytest.raises(ConfigError, match=r"x\.one"):
        validate_options(build, {"one": "8"}, "x")
    with pytest.raises(ConfigError, match=r"x\.some"):
        validate_options(build, {"some": 3}, "x")
