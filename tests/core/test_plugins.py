"""Plugins are found through real entry points; a broken one costs only what it provides."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import EntryPoint, distributions

import pytest

from spectok import create_quantizer, list_quantizers, load_tokenizer, plugins
from spectok.errors import PluginError, UnknownNameError
from spectok.plugins import hookspecs
from spectok.plugins.loading import load_plugins
from spectok.plugins.registry import get_quantizer, provider

GOOD = """
from spectok import hookimpl

@hookimpl
def spectok_quantizers():
    from spectok_vq.quantizer import EMAQuantizer
    return {"NAME": EMAQuantizer}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package into a folder on the path: a module, its metadata, its entry point."""

    def write(package, code, version="1.0"):
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}"
        )
        (info / "entry_points.txt").write_text(f"[{hookspecs.GROUP}]\n{package} = {package}\n")

    monkeypatch.syspath_prepend(tmp_path)
    plugins.installed.cache_clear()
    known = set(sys.modules)
    yield write
    plugins.installed.cache_clear()
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def points(folder):
    return [p for d in distributions(path=[str(folder)]) for p in d.entry_points]


def test_an_installed_package_registers_a_quantizer(install):
    install("sphere_pack", GOOD.replace("NAME", "sphere"))
    assert "sphere" in list_quantizers()
    assert provider("quantizer", "sphere") == "sphere_pack 1.0"
    assert create_quantizer("sphere", dim=4, num_tokens=4, codebook_size=8).codebook_size == 8


def test_two_plugins_that_claim_one_name_are_both_named(install):
    install("first_pack", GOOD.replace("NAME", "sphere"), version="1.2")
    install("second_pack", GOOD.replace("NAME", "sphere"), version="3.4")
    with pytest.raises(PluginError) as caught:
        list_quantizers()
    message = str(caught.value)
    assert "'sphere' (spectok_quantizers) is registered twice" in message
    assert "first_pack 1.2" in message
    assert "second_pack 3.4" in message
    assert "uninstall one of them" in message


def test_a_name_of_our_own_cannot_be_taken_over(install):
    install("thief", GOOD.replace("NAME", "ema"))
    with pytest.raises(PluginError, match=r"'ema' .* registered twice: by .*spectok .*thief"):
        get_quantizer("ema")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (GOOD.replace("EMAQuantizer", "NoSuchClass"), "ImportError: cannot import"),
        (GOOD.replace('{"NAME": EMAQuantizer}', "[EMAQuantizer]"), "returned a list, not a dict"),
        (GOOD.replace('{"NAME": EMAQuantizer}', "None"), "returned a NoneType, not a dict"),
    ],
)
def test_a_broken_plugin_is_a_warning_that_names_it(install, code, reason):
    install("fancy", code)
    install("sphere_pack", GOOD.replace("NAME", "sphere"))
    with pytest.warns(RuntimeWarning, match="plugin 'fancy' of fancy 1.0 is not avail") as caught:
        assert {"ema", "sphere"} <= set(list_quantizers())
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    with pytest.raises(PluginError, match="'fancy' belongs to a plugin that fails to load"):
        get_quantizer("fancy")
    with pytest.raises(PluginError, match="'fancy' belongs to a plugin that fails to load"):
        load_tokenizer("fancy")
    with pytest.raises(UnknownNameError, match="Plugins that failed to load: fancy"):
        get_quantizer("another")
    assert get_quantizer("ema")


def test_a_misspelt_hook_is_an_error_with_the_right_spelling(install):
    install("typo", GOOD.replace("spectok_quantizers", "spectok_quantisers"))
    with pytest.raises(PluginError) as caught:
        list_quantizers()
    assert "plugin 'typo' of typo 1.0" in str(caught.value)
    assert "did you mean 'spectok_quantizers'?" in str(caught.value)


def test_a_hook_with_other_arguments_is_an_error(install):
    install("typo", GOOD.replace("spectok_quantizers()", "spectok_quantizers(device)"))
    with pytest.raises(PluginError, match=r"typo.*device"):
        list_quantizers()


def test_functions_without_the_marker_are_not_called(install):
    install("plain", GOOD.replace("@hookimpl\n", "").replace("NAME", "sphere"))
    assert "sphere" not in list_quantizers()


def test_the_order_does_not_depend_on_the_order_of_installation(install, tmp_path):
    for package in ("b_pack", "a_pack", "c_pack"):
        install(package, GOOD.replace("NAME", package))
    found = points(tmp_path)
    for order in (found, found[::-1]):
        loaded = load_plugins(order).loaded
        assert [plugin.name for plugin in loaded] == ["a_pack", "b_pack", "c_pack"]


def test_an_entry_point_without_a_distribution_is_loaded(install, tmp_path):
    (tmp_path / "loose.py").write_text(GOOD.replace("NAME", "loose"))
    loaded = load_plugins([EntryPoint("loose", "loose", hookspecs.GROUP)])
    assert loaded.loaded[0].distribution == "an unknown distribution"
    assert list(loaded.collect("spectok_quantizers")) == ["loose"]


def test_every_plugin_of_this_distribution_loads():
    plugins.installed.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plugins.installed().broken == {}
        ours = {p.name for p in plugins.installed().loaded if p.distribution.startswith("spectok ")}
    assert {"spectok", "vq", "qgvae", "generation"} <= ours
