"""Recipes: YAML, overrides, validation, agreement of sections, and writing them down again."""

import itertools
import tracemalloc
from pathlib import Path

import pytest
import yaml

from spectok.data.choice import data_override
from spectok.errors import ConfigError, UnknownNameError
from spectok.recipes.recipe import apply_overrides, resolve_recipe
from spectok.recipes.yaml12 import dump_yaml, parse_yaml
from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe


def problem(name="qgvae", overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_tokenizer_recipe(name, overrides)
    return str(caught.value)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 1e-3), ("2.5E4", 2.5e4), ("-.5", -0.5), ("3", 3), ("0", 0), ("-7", -7)],
        *[("no", "no"), ("off", "off"), ("yes", "yes"), ("true", True), ("False", False)],
        *[
            ("12:30:45", "12:30:45"),
            ("2024-01-01", "2024-01-01"),
            ("012", "012"),
            ("1_000", "1_000"),
        ],
        *[("null", None), ("~", None), ("", None), ("'1'", "1"), (".inf", float("inf"))],
        *[("[1, 2.0]", [1, 2.0]), ("{name: ema, decay: 9e-1}", {"name": "ema", "decay": 0.9})],
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("value", ["no", "1e-3", "12:30:45", "012", "true", "", "~", "a: b", 1e-5])
def test_written_yaml_reads_back_in_either_version(value):
    text = dump_yaml({"key": value})
    assert parse_yaml(text, "here") == {"key": value}
    assert yaml.safe_load(text) == {"key": value}


def test_yaml_that_is_wrong_says_where():
    with pytest.raises(ConfigError, match=r"^here: not valid YAML: .*line 2"):
        parse_yaml("a: 1\nb: [", "here")
    with pytest.raises(ConfigError, match="the key 'a' appears twice"):
        parse_yaml("a: 1\na: 2", "here")


def test_yaml_builds_no_objects():
    with pytest.raises(ConfigError):
        parse_yaml("!!python/object/apply:os.getcwd []", "here")


def test_overrides_go_deep_and_leave_the_original_alone():
    raw = {"tokenizer": {"name": "qgvae", "quantizer": "voronoi"}}
    changed = apply_overrides(raw, ["tokenizer.quantizer.reset_every=5", "train.steps=3"])
    assert changed["tokenizer"]["quantizer"] == {"name": "voronoi", "reset_every": 5}
    assert changed["train"] == {"steps": 3}
    assert raw == {"tokenizer": {"name": "qgvae", "quantizer": "voronoi"}}


def test_another_name_drops_the_options_of_the_first():
    raw = {"tokenizer": {"name": "qgvae", "num_tokens": 16}}
    same = apply_overrides(raw, ["tokenizer.name=qgvae"])
    assert same["tokenizer"] == {"name": "qgvae", "num_tokens": 16}
    # Whatever the order of the words, the name comes first.
    other = apply_overrides(raw, ["tokenizer.channels=32", "tokenizer.name=vqvae"])
    assert other["tokenizer"] == {"name": "vqvae", "channels": 32}


def test_a_section_comes_before_its_contents():
    changed = apply_overrides({}, ["tokenizer.quantizer.decay=0.5", "tokenizer.quantizer=ema"])
    assert changed["tokenizer"]["quantizer"] == {"name": "ema", "decay": 0.5}


@pytest.mark.parametrize("override", ["train.steps", "=3", "a..b=1"])
def test_what_is_not_an_override_is_refused(override):
    assert "is not key=value" in problem(overrides=[override])


def test_an_override_cannot_go_into_a_value():
    message = problem(overrides=["tokenizer.num_tokens=8", "tokenizer.num_tokens.x=1"])
    assert message == "tokenizer.num_tokens: 8 is a value, not a section with keys"


def test_a_bare_key_means_defaults():
    recipe = load_tokenizer_recipe("vqvae")
    assert recipe.tokenizer["name"] == "vqvae"
    assert recipe.tokenizer["codebook_size"] == 512
    assert recipe.data.name == "digits"
    assert recipe.seed == 0


def test_a_recipe_is_found_by_name_with_and_without_its_folder():
    long, short = (
        load_tokenizer_recipe("tokenizers/qgvae/mnist"),
        load_tokenizer_recipe("qgvae/mnist"),
    )
    assert long == short
    assert long.tokenizer["num_tokens"] == 64


@pytest.mark.parametrize("key", ["qgvae", "vqvae", "qgvae/mnist"])
def test_a_written_recipe_loads_equal(key, tmp_path):
    recipe = load_tokenizer_recipe(key, ["seed=3", "output=runs/no", "train.learning_rate=1e-5"])
    path = write(tmp_path, dump_yaml(recipe.model_dump(mode="json")))
    assert load_tokenizer_recipe(path) == recipe


def test_a_quantizer_without_a_name_is_the_default_one():
    recipe = load_tokenizer_recipe("qgvae", ["tokenizer.quantizer.reset_every=7"])
    assert recipe.tokenizer["quantizer"]["name"] == "voronoi"
    assert recipe.tokenizer["quantizer"]["reset_every"] == 7


def test_images_of_the_data_set_decide_where_nothing_else_does():
    recipe = load_tokenizer_recipe("qgvae", ["data.name=digits"])
    assert (recipe.tokenizer["image_size"], recipe.tokenizer["in_channels"]) == (16, 1)
    recipe = load_tokenizer_recipe("qgvae", ["data.name=cifar10"])
    assert (recipe.tokenizer["image_size"], recipe.tokenizer["in_channels"]) == (32, 3)


def test_either_side_can_decide_about_the_images():
    recipe = load_tokenizer_recipe("qgvae", ["data.name=mnist", "data.image_size=32"])
    assert recipe.tokenizer["image_size"] == recipe.data.image_size == 32
    recipe = load_tokenizer_recipe("qgvae", ["data.name=mnist", "tokenizer.image_size=32"])
    assert recipe.tokenizer["image_size"] == recipe.data.image_size == 32


def test_own_images_take_the_size_of_the_tokenizer(tmp_path):
    recipe = load_tokenizer_recipe("qgvae", [data_override(str(tmp_path))])
    assert recipe.data.name == "folder"
    assert recipe.data.path == str(tmp_path)
    assert recipe.data.image_size == recipe.tokenizer["image_size"] == 32
    recipe = load_tokenizer_recipe("qgvae/celeba64", [data_override(str(tmp_path))])
    assert recipe.data.image_size == 64


def test_tokenizer_and_data_that_differ_are_one_line():
    message = problem(overrides=["tokenizer.image_size=16", "data.image_size=32"])
    assert message.startswith("tokenizer.image_size: 16 differs from data.image_size 32; ")
    assert "\n" not in message


def test_data_is_told_by_looking(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    (tmp_path / "table.parquet").touch()
    (tmp_path / "pictures").mkdir()
    assert data_override("digits") == ("data", {"name": "digits"})
    kinds = {"shards": "webdataset", "table.parquet": "parquet", "pictures": "folder"}
    for path, name in kinds.items():
        given = str(tmp_path / path)
        assert data_override(given) == ("data", {"name": name, "path": given})
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        data_override("digit")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.imagesize=32", "tokenizer.imagesize: unknown key (did you mean 'image_size'?)"),
        ("data.naem=mnist", "data.naem: unknown key (did you mean 'name'?)"),
        ("trian.steps=3", "trian: unknown key (did you mean 'train'?)"),
        ("steps=3", "steps: unknown key (did you mean 'train.steps'?)"),
        ("train.steps=many", "train.steps: Input should be a valid integer (got 'many')"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1 (got 0)"),
        ("tokenizer.codebook_size=1", "tokenizer.codebook_size: Input should be greater than"),
        ("tokenizer.num_tokens=true", "tokenizer.num_tokens: Input should be a valid integer"),
        ("tokenizer.quantizer=voronio", "tokenizer.quantizer.name: unknown quantizer 'voronio'"),
        ("tokenizer.quantizer.reset=3", "tokenizer.quantizer.reset: unknown key (did you mean"),
        ("data.name=mnst", "data.name: unknown dataset 'mnst' (did you mean 'mnist'?)"),
        (
            "tokenizer.name=qgvea",
            "tokenizer.name: unknown tokenizer 'qgvea' (did you mean 'qgvae'?)",
        ),
        ("data=3", "data: 3 is a value, not a section"),
    ],
)
def test_each_problem_is_one_line_with_its_path(override, message):
    said = problem(overrides=[override])
    assert said.startswith(message)
    assert "\n" not in said


def test_all_problems_are_told_at_once():
    said = problem(overrides=["steps=3", "tokenizer.imagesize=3", "data.naem=x", "train.steps=x"])
    paths = [line.partition(":")[0] for line in said.splitlines()]
    assert paths == ["steps", "tokenizer.imagesize", "data.naem", "train.steps"]


def test_a_recipe_must_say_which_tokenizer():
    with pytest.raises(ConfigError, match=r"^tokenizer\.name: missing; one of .*qgvae"):
        resolve_recipe({"train": {"steps": 3}}, TokenizerRecipe)


def test_a_missing_recipe_names_the_nearest(tmp_path):
    assert "no recipe qgvae/minst (did you mean 'tokenizers/qgvae/mnist'?)" in problem(
        "qgvae/minst"
    )
    message = problem("configs/tokenizers/qgvae/mnits.yaml")
    assert "no recipe file configs/tokenizers/qgvae/mnits.yaml" in message
    assert "did you mean 'tokenizers/qgvae/mnist'" in message
    with pytest.raises(UnknownNameError, match="unknown tokenizer 'qgvea'"):
        load_tokenizer_recipe("qgvea")


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    assert "a recipe is a mapping of sections" in problem(write(tmp_path, "- 1\n"))
    assert "not valid YAML" in problem(write(tmp_path, "a: [\n"))
    assert problem(write(tmp_path, "tokenizer: qgvea\n")).startswith("tokenizer.name: unknown")


def yaml_bomb():
    """Return 919 bytes that stand for 9 ** 9 values."""
    lines = ["seed: 0", "train:", "  a: &a [x,x,x,x,x,x,x,x,x]"]
    for above, name in itertools.pairwise("abcdefghi"):
        lines.append(f"  {name}: &{name} [{','.join([f'*{above}'] * 9)}]")
    return "\n".join([*lines, "  steps: *i"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (yaml_bomb(), "over 10,000 values, repetitions by aliases counted"),
        ("a: &a [*a]", "alias 'a' contains itself"),
        ("[" * 5_000, "nests deeper than 100 levels"),
        ("{a: " * 5_000, "nests deeper than 100 levels"),
        ("- " * 5_000, "nests deeper than 100 levels"),
        ("a: " + "1" * 10_000, "too many digits"),
        ("a: !!int " + "0x" + "f" * 10_000, "tag .*int' does not fit"),
        ("a: !!int abc", "tag .*int' does not fit"),
        ("a: !!bool foo", "tag .*bool' does not fit"),
        ("a: !!timestamp x", "tag .*timestamp' does not fit"),
        ("a: !!map [1]", "tag .*map' does not fit"),
        ("{[a]: 1}", "the key is not a word"),
        ("1: x", "the key '1' is not a word; put it in quotes"),
        ('a: "\\U99999999"', "digits"),
        ('a: "\\ud800"', "a character that no text can have"),
        ('a: "\\0"', "a character that no text can have"),
        ("a: \udcff", "unacceptable character"),
        ("a: " + "x" * 200_000, "200,003 characters, over 131,072"),
    ],
)
def test_yaml_that_costs_more_than_it_says_is_one_short_line(text, reason):
    tracemalloc.start()
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_yaml(text, "here")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_yaml_with_aliases_is_read():
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]", "here")["b"] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    "override",
    [
        *("a.b.c.d=1", "=", "x=", "train.steps=[", "train.steps=1e15", "train.steps=" + "9" * 40),
        *("train.steps=1000000000000000", "train.learning_rate=1e300", "train.learning_rate=.inf"),
        *("train.learning_rate=.nan", "train.learning_rate=-0.0", "train.betas=[.nan, 0.9]"),
        *(
            "tokenizer.name=[1]",
            "tokenizer={name: {a: 1}}",
            "tokenizer.name.x=1",
            "seed=" + "9" * 30,
        ),
        *("train.max_grad_norm=.inf", "tokenizer.quantizer=[]", "train=1", ".=1", "\udcff=1"),
        *("data.name=[]", "data.image_size={a: 1}", "tokenizer.image_size=" + "9" * 400),
        "tokenizer.quantizer.d.\udcff={name: ema}",
        *("train.steps=\udcff", "tokenizer.name=" + "x" * 100_000, "x" * 100_000 + "=1"),
    ],
)
def test_an_override_that_cannot_be_is_one_short_line(override):
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        load_tokenizer_recipe("vqvae", [override])
    for problem in caught.value.problems:
        assert "\n" not in problem
        assert len(problem) < 2_000


def test_each_problem_is_a_line_and_no_name_can_forge_one(capsys):
    from spectok.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["train", "vqvae", "train.a\nerror: fine=1", "train.\x1b[2J=2", "train.stepz=3"])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert "train.a\\nerror: fine: unknown key" in lines[0]
    assert "\x1b" not in lines[1]
