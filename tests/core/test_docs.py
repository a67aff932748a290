"""The pages say what is there: code runs, commands parse, links lead somewhere."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from spectok import errors, list_priors, list_quantizers, list_tokenizers, load_tokenizer, plugins
from spectok.cli import build_app
from spectok.data.choice import data_override
from spectok.data.data_config import DataConfig
from spectok.data.presets import PRESETS
from spectok.plugins import hookspecs
from spectok.recipes.yaml12 import dump_yaml
from spectok.training import AdversarialConfig, LossConfig, TrainConfig
from spectok.training.recipe import load_tokenizer_recipe
from spectok_generation.prior_recipe import load_prior_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "plugins/*/*.md", "examples/*/*.md")
    for p in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def path(self) -> str | None:
        """Where the block says it belongs: its first line, ``# some/file.py``."""
        found = re.match(r"# (\S+\.\w+)\n", self.text)
        return found[1] if found else None


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    found = [Block(page, *match) for match in FENCE.findall(read(page))]
    return [block for block in found if block.language in languages]


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, code blocks left out, up to the next of its kind."""
    prose = FENCE.sub("", read(page))
    found = re.search(rf"^(#+) [^\n]*{re.escape(heading)}[^\n]*\n(.*)", prose, re.M | re.S)
    assert found, f"{page} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", found[2], maxsplit=1, flags=re.M)[0]


def first_cells(table: str) -> set[str]:
    """Return the names in backticks in the first column of a table, its header left out."""
    rows = table.partition("|---|")[2].splitlines()[1:]
    cells = [row.split("|")[1] for row in rows if row.startswith("|")]
    return {name for cell in cells for name in re.findall(r"`([\w-]+)", cell)}


# -- Python ----------------------------------------------------------------------------------------


def lay_out_runs(text: str) -> None:
    """Put untrained models where a page says that ``spectok train`` has put trained ones."""
    for folder, recipe in re.findall(r"(runs/(\w+-\w+)/model)", text):
        options = load_tokenizer_recipe(recipe.replace("-", "/")).tokenizer
        load_tokenizer(options.pop("name"), **options).save_pretrained(folder)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    lay_out_runs("".join(block.text for block in blocks(page, "python")))
    for block in blocks(page, "python"):
        if block.path is None:
            exec(compile(block.text, page, "exec", flags=0, dont_inherit=True), namespace)
        else:
            compile(block.text, block.path, "exec")


def lay_out_package(page: str, folder: Path) -> Path:
    """Lay out the package of a page as its blocks say, installed as pip would leave it."""
    for block in blocks(page, "python"):
        if block.path:
            path = folder / block.path
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    text = next(b.text for b in blocks(page, "toml") if b.path == "pyproject.toml")
    project = tomllib.loads(text)["project"]
    name, version = project["name"], project["version"]
    (folder / name.replace("-", "_") / "__init__.py").touch()
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    group = project["entry-points"][hookspecs.GROUP]
    lines = [f"[{hookspecs.GROUP}]", *(f"{name} = {module}" for name, module in group.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def sign_package(tmp_path: Path) -> Path:
    """Lay out the package of plugins.md."""
    return lay_out_package("docs/plugins.md", tmp_path)


def test_the_documented_plugin_is_found(sign_package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(sign_package)
    found = plugins.load_plugins(list(entry_points(group=hookspecs.GROUP)))
    value, plugin = found.collect("spectok_quantizers")["sign"]
    quantizer_class = found.resolve("spectok_quantizers", "sign", value, plugin)
    assert plugin.distribution == "spectok-sign 0.1.0"
    quantizer = quantizer_class(dim=6, num_tokens=16, codebook_size=64)
    output = quantizer(torch.randn(2, 16, 6))
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)
    for name in [name for name in sys.modules if name.startswith("spectok_sign")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_documented_tokenizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(lay_out_package("docs/write-a-tokenizer.md", tmp_path))
    plugins.installed.cache_clear()
    try:
        tokenizer = load_tokenizer("waves", image_size=16, in_channels=1, channels=8).eval()
    finally:
        plugins.installed.cache_clear()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    indices = tokenizer.encode(images)
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(indices), tokenizer(images).reconstruction)
        blurred = tokenizer.decode(indices, num_tokens=1)
    assert indices.shape == (2, 16)
    assert not torch.equal(blurred, tokenizer.decode(indices))
    for name in [name for name in sys.modules if name.startswith("spectok_waves")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/plugins.md", "docs/write-a-tokenizer.md"])
def test_the_documented_package_passes_the_kit(page: str, tmp_path: Path):
    folder = lay_out_package(page, tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout


# -- commands --------------------------------------------------------------------------------------


def commands(page: str) -> list[list[str]]:
    """Return the words of every command in the shell blocks of a page."""
    lines = [line for b in blocks(page, "bash") for line in b.text.splitlines()]
    parts = [part for line in lines for part in line.split(" && ")]
    return [words for words in (shlex.split(part, comments=True) for part in parts) if words]


def spectok_words(words: list[str]) -> list[str] | None:
    """Return the words after ``spectok`` that a command stands for; None for other programs."""
    if Path(words[0]).name == "spectok":
        return words[1:]
    script = next((w for w in words if w.startswith("generation/") and w.endswith(".py")), None)
    if script is None:
        return None
    given = words[words.index(script) + 1 :]
    run: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *given])
        patch.setattr("spectok.cli.main", run.append)
        patch.setattr("spectok.cli.scripts.main", run.append)
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return run[0]


SPECTOK = [(page, words) for page in PAGES for words in map(spectok_words, commands(page)) if words]


def parse(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the command and the values of its parameters, as the command line would see them."""
    command: Any = typer.main.get_command(build_app())
    context, path = command.make_context("spectok", list(words)), []
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        path.append(name)
        context = command.make_context(name, rest, parent=context)
    return path, context.params


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the commands of the pages are typed: a checkout with images and one run."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "generation"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("my-images", "shards", "cifar-files", "tokens", "runs/qgvae-digits/model"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("faces.parquet", "shards/0.tar"):
        (tmp_path / name).touch()
    recipe = load_tokenizer_recipe("qgvae/digits").model_dump(mode="json")
    (tmp_path / "runs/qgvae-digits/recipe.yaml").write_text(dump_yaml(recipe))


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(("page", "words"), SPECTOK, ids=[" ".join(w) for _, w in SPECTOK])
def test_commands_parse_and_their_recipes_load(page: str, words: list[str]):
    path, given = parse(words)
    if path == ["train", "tokenizer"]:
        own_data = [data_override(given["data"])] if given["data"] else []
        load_tokenizer_recipe(given["recipe"], [*own_data, *(given["overrides"] or [])])
    if path == ["train", "prior"]:
        named = [word for word in given["words"] or [] if "=" not in word]
        overrides: list[Any] = [word for word in given["words"] or [] if "=" in word]
        overrides += [(k, given[k]) for k in ("tokenizer", "tokens") if given[k]]
        load_prior_recipe((named or ["gpt"])[0], overrides, given["data"])


def test_a_wrong_command_does_not_parse():
    with pytest.raises(Exception, match="No such option"):
        parse(["sample", "--prior", "p", "--out", "o.png", "--number", "3"])


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Return every command below a group, with its words."""
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [leaf for name, c in command.commands.items() for leaf in leaves(c, (*path, name))]


@pytest.mark.parametrize(
    ("path", "command"),
    leaves(typer.main.get_command(build_app())),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_option_is_documented(path: tuple[str, ...], command: Any):
    words = [word for word in path if word != "tokenizer"]
    text = section("docs/cli.md", f"spectok {' '.join(words)}")
    for parameter in command.params:
        for option in (o for o in parameter.opts if o.startswith("--") and o != "--help"):
            assert option in text, f"docs/cli.md says nothing of spectok {' '.join(path)} {option}"


def test_readme_names_every_command():
    for path, _ in leaves(typer.main.get_command(build_app())):
        words = " ".join(word for word in path if word != "tokenizer")
        assert f"`spectok {words}" in section("README.md", "Command line")


@pytest.mark.parametrize(("mark", "last"), [("demo", "spectok demo"), ("tests", "-m pytest -n 2")])
def test_readme_starts_with_one_command(mark: str, last: str):
    block = rf"^<!-- run: {mark} -->\n```bash\n(.*?)\n```$"
    found = re.search(block, read("README.md"), re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no block marked {mark!r}, which .ci/run and readers need"
    assert found[1].startswith("python3 -m venv .venv && ")
    assert found[1].endswith(last)
    assert "\n" not in found[1]


# -- links -----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    prose = FENCE.sub("", read(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(found), f"{page}: no heading for {target}"


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md|plugins/\w+/README\.md)", read("README.md")))
    linked |= {f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)", read("docs/concepts.md"))}
    missing = {p for p in PAGES if p.startswith(("docs/", "plugins/"))} - linked
    assert not missing


# -- tables ----------------------------------------------------------------------------------------


def test_settings_tables_are_whole():
    assert first_cells(section("docs/training.md", "Recipes")) == set(TrainConfig.model_fields)
    assert first_cells(section("docs/training.md", "Losses")) == set(LossConfig.model_fields)
    adversarial = set(AdversarialConfig.model_fields)
    assert first_cells(section("docs/training.md", "A discriminator")) == adversarial
    assert first_cells(section("docs/data.md", "Settings")) == set(DataConfig.model_fields)


def test_training_defaults_are_true():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section("docs/training.md", "Recipes"), re.M)
    for name, shown in rows:
        value = load_tokenizer_recipe(
            "vqvae", [f"train.{name}={shown.strip('`').replace('none', 'null')}"]
        )
        assert getattr(value.train, name) == TrainConfig.model_fields[name].default, name


def test_every_hook_is_documented():
    hooks = {name for name in vars(hookspecs) if name.startswith("spectok_")}
    assert first_cells(section("docs/plugins.md", "Plugins").split("## ")[0]) == hooks


def test_every_preset_is_documented():
    assert set(re.findall(r"`(\w+)`", section("docs/data.md", "Presets"))) >= set(PRESETS)


def test_every_error_is_documented():
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert set(re.findall(r"\b[A-Z]\w+Error\b", read("docs/concepts.md"))) == defined


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("tokenizers", list_tokenizers),
        ("quantizers", list_quantizers),
        ("priors", list_priors),
    ],
)
def test_readme_claims_what_is_registered(row: str, names: Any):
    table = section("README.md", "What works today")
    found = re.search(rf"^\| {row} \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert found, f"README.md, 'What works today', has no row {row!r}"
    works, not_yet = (set(re.findall(r"`(\w+)`", cell)) for cell in found.groups())
    assert works == set(names()), f"README.md, 'What works today', {row}: not what is registered"
    assert not not_yet & set(names()), f"README.md, 'What works today', {row}: done by now"


TEXTS = (".md", ".py", ".yaml", ".yml", ".toml", ".json", ".txt", ".cfg", "")
FOLDERS = ("core", "plugins", "generation", "tests", "configs", "docs", "examples", "benchmarks")


def test_no_file_holds_the_marks_of_an_unfinished_merge():
    files = [p for p in ROOT.iterdir() if p.is_file()]
    files += [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]
    marks = tuple(mark * 7 for mark in ("<", ">", "|"))
    found = [
        str(p.relative_to(ROOT))
        for p in files
        if p.suffix in TEXTS
        for line in p.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith(marks)
    ]
    assert not found


def test_each_claim_has_one_row_of_full_cells():
    rows = [
        row.strip("|").split(" | ") for row in read("docs/claims.md").splitlines() if "|" in row
    ]
    claims = [
        [cell.strip() for cell in row] for row in rows if re.fullmatch(r"[A-Z]\d+", row[0].strip())
    ]
    numbers = [row[0] for row in claims]
    assert len(numbers) > 60
    assert len(set(numbers)) == len(numbers)
    assert all(len(row) == 5 and all(row) for row in claims)
    for letter in "QFACH":
        own = [int(number[1:]) for number in numbers if number[0] == letter]
        assert own == list(range(1, len(own) + 1))
