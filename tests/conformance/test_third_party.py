"""The example package, installed as anyone's would be: found, conformant, trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import spectok
import spectok.testing
from spectok import cli, list_quantizers, list_tokenizers, plugins
from spectok.plugins.registry import provider

ROOT = Path(spectok.__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_quantizer"
INSTALL = "install -q --no-index --no-deps --no-build-isolation --disable-pip-version-check"

pytestmark = pytest.mark.skipif(not EXAMPLE.is_dir(), reason="needs a checkout")


def run(*words, **options):
    result = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def checkout():
    """Return the state of every file of this repository but build outputs."""
    skipped = {".git", "__pycache__", ".pytest_cache", ".ruff_cache"}
    return {
        path: path.stat().st_mtime_ns
        for folder in ("core", "plugins", "generation", "configs", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not skipped & set(path.parts)
    }


@pytest.fixture
def on_path(on_example_path):
    """Start with the package installed."""
    with on_example_path():
        yield


@pytest.mark.usefixtures("on_path")
def test_the_package_is_found_and_listed(capsys):
    assert "pq" in list_quantizers()
    assert "strips" in list_tokenizers()
    for kind, name in [("quantizer", "pq"), ("tokenizer", "strips")]:
        assert provider(kind, name) == "spectok-product 0.1.0"
        with pytest.raises(SystemExit) as ended:
            cli.main(["list", f"{kind}s", "--json"])
        assert ended.value.code in (0, None)
        listed = {row["name"]: row["package"] for row in json.loads(capsys.readouterr().out)}
        assert listed[name] == "spectok-product 0.1.0"


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
def test_the_package_passes_the_kits_and_trains_in_every_tokenizer(pytester):
    """Runs the package's own tests, of which two classes are the kits."""
    code = (EXAMPLE / "tests" / "test_product.py").read_text(encoding="utf-8")
    pytester.makepyfile(test_product=code)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcome = result.parseoutcomes()
    assert set(outcome) == {"passed", "skipped"}
    assert outcome["passed"] > 40
    assert outcome["skipped"] == 1  # the quantizer revives no codes


def test_the_package_is_gone_once_uninstalled():
    plugins.installed.cache_clear()
    assert "pq" not in list_quantizers()
    assert "strips" not in list_tokenizers()


@pytest.mark.slow
def test_a_clean_environment(tmp_path):
    """A new environment with both wheels: nothing here is imported, and nothing is changed."""
    before = checkout()
    wheels, home = tmp_path / "wheels", tmp_path / "home"
    home.mkdir()
    for source in (ROOT, EXAMPLE):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", wheels, source)
    venv.create(tmp_path / "venv", with_pip=False)
    binaries = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", binaries / "python"]
    run(*pip, *INSTALL.split(), *wheels.glob("*.whl"))
    site = run(binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # The libraries that spectok needs; a path added this way does not follow editable installs.
    Path(site.strip(), "libraries.pth").write_text(sysconfig.get_path("purelib"))

    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    options = {"cwd": home, "env": environment}
    where = run(binaries / "python", "-c", "import spectok; print(spectok.__file__)", **options)
    assert where.startswith(str(tmp_path / "venv"))
    listing = run(binaries / "spectok", "list", "quantizers", **options)
    assert "pq" in [line.split()[0] for line in listing.splitlines()]
    tests = EXAMPLE / "tests" / "test_product.py"
    (home / tests.name).write_bytes(tests.read_bytes())
    run(binaries / "python", "-m", "pytest", "-q", tests.name, **options)
    for key in ("qgvae", "vqvae"):
        words = ["train", f"smoke/{key}", "tokenizer.quantizer=pq", "train.steps=4"]
        run(binaries / "spectok", *words, "--output", home / key, **options)
        config = json.loads((home / key / "model" / "config.json").read_text())
        assert config["quantizer"]["name"] == "pq"
    words = ["train", "strips", "--data", "digits", "train.steps=4"]
    run(binaries / "spectok", *words, "--output", home / "strips", **options)
    words = ["train", "prior", "smoke/prior_gpt", "--tokenizer", home / "strips", "train.steps=2"]
    run(binaries / "spectok", *words, "--output", home / "prior", **options)
    words = ["sample", "--prior", home / "prior", "--num-images", "2", "--out", home / "drawn.png"]
    run(binaries / "spectok", *words, **options)
    assert (home / "drawn.png").is_file()
    assert checkout() == before
