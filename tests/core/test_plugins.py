"""Plugins are found through real entry points; a broken one costs only what it provides."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from dataclasses import replace
from importlib.metadata import EntryPoint, distributions

import pytest
import torch

from spectok import create_quantizer, list_quantizers, load_tokenizer, plugins
from spectok.cli import main
from spectok.errors import InputError, PluginError, UnknownNameError
from spectok.plugins import hookspecs
from spectok.plugins.loading import load_plugins
from spectok.plugins.registry import (
    HOOKS,
    class_names,
    get_quantizer,
    known_options,
    list_registered,
    names,
    provider,
    renamed_options,
    summaries,
)
from spectok.recipes.files import list_recipes
from spectok.recipes.schema import section_model
from spectok_vq.quantizer import EMAQuantizer

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


def test_a_misspelt_hook_is_named_with_the_right_spelling_and_costs_only_its_plugin(install):
    install("typo", GOOD.replace("spectok_quantizers", "spectok_quantisers"))
    install("sphere_pack", GOOD.replace("NAME", "sphere"))
    with pytest.warns(RuntimeWarning, match="plugin 'typo' of typo 1.0") as caught:
        assert {"ema", "sphere"} <= set(list_quantizers())
    assert "did you mean 'spectok_quantizers'?" in str(caught[0].message)


def test_a_hook_with_other_arguments_is_named(install):
    install("typo", GOOD.replace("spectok_quantizers()", "spectok_quantizers(device)"))
    with pytest.warns(RuntimeWarning, match=r"typo.*device"):
        assert "ema" in list_quantizers()


REGISTERS = """
from spectok import hookimpl

@hookimpl
def spectok_HOOK():
    return VALUE
"""


@pytest.mark.parametrize("kind", list(HOOKS))
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("None", "returned a NoneType"),
        ("{1: int}", "the name 1, which is no text"),
        ("{None: int}", "the name None, which is no text"),
        ("{'': int}", "the name '', which is no text"),
        ("{'bad': 3}", "registers 3 as 'bad', which"),
        ("{'bad': None}", "registers None as 'bad', which"),
        ("__import__('sys').exit(0)", "SystemExit: 0"),
        ("{'bad': ('x' * 10_000_000)}", "registers 'xxx"),
    ],
)
def test_a_hook_that_returns_the_wrong_thing_costs_only_its_plugin(install, kind, value, reason):
    before = set(list_registered(kind))
    install("fancy", REGISTERS.replace("HOOK", f"{kind}s").replace("VALUE", value))
    plugins.installed.cache_clear()
    with pytest.warns(RuntimeWarning, match="plugin 'fancy' of fancy 1.0") as caught:
        assert set(list_registered(kind)) == before
    assert reason in str(caught[0].message)
    assert len(str(caught[0].message)) < 400


@pytest.mark.parametrize("kind", ["tokenizer", "quantizer", "discriminator", "dataset"])
def test_a_class_of_another_kind_costs_only_its_plugin(install, kind):
    install("fancy", REGISTERS.replace("HOOK", f"{kind}s").replace("VALUE", "{'bad': int}"))
    with pytest.warns(RuntimeWarning, match="registers <class 'int'> as 'bad', which is not a"):
        assert "bad" not in list_registered(kind)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(3)",
        "raise SystemExit",
        "quit()",
        "class Own(BaseException): pass\nraise Own('gone')",
    ],
)
def test_a_plugin_that_ends_the_program_at_import_does_not(install, code, capsys):
    install("fancy", code)
    with pytest.raises(SystemExit) as caught:
        main(["list", "quantizers"])
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert "ema" in shown.out
    named = "warning: plugin 'fancy' of fancy 1.0 is not available: "
    assert shown.err.startswith((named + "SystemExit", named + "Own: gone"))


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    "code", ["app.registered_commands.clear()", "train.registered_commands[0:1] = []"]
)
def test_a_plugin_cannot_take_commands_away(install, code, capsys):
    hook = f"from spectok import hookimpl\n@hookimpl\ndef spectok_commands(app, train): {code}"
    install("fancy", hook)
    with pytest.raises(SystemExit) as caught:
        main(["info", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert "bits per image" in shown.out
    assert "'fancy' of fancy 1.0" in shown.err
    assert "removes commands of others" in shown.err


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("'recipes'", "'recipes', which is no pathlib.Path"),
        ("None", "None, which is no pathlib.Path"),
        ("Path('/nowhere')", "which is not a folder"),
        ("Path('/')", "which holds more than the plugin's own package"),
        ("Path(__file__).parent.parent", "which holds more than the plugin's own package"),
    ],
)
def test_a_folder_of_recipes_that_is_none_costs_only_its_plugin(install, value, reason):
    before = set(list_recipes())
    hook = "from pathlib import Path\nfrom spectok import hookimpl\n"
    install("fancy", f"{hook}@hookimpl\ndef spectok_recipes(): return {value}")
    plugins.installed.cache_clear()
    with pytest.warns(RuntimeWarning, match="plugin 'fancy' of fancy 1.0") as caught:
        assert set(list_recipes()) == before
    assert reason in str(caught[0].message)


COMMANDS = """
from spectok import hookimpl

def fancy(x: BAD) -> None: "Do."

@hookimpl
def spectok_commands(app, train):
    app.command("NAME")(fancy)
"""


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("encode", "int", "adds a second command 'encode'"),
        ("train", "int", "adds a second command 'train'"),
        ("fancy", "'Nowhere'", "NameError: name 'Nowhere' is not defined"),
    ],
)
def test_a_command_that_does_not_work_costs_only_its_plugin(install, name, kind, reason, capsys):
    install("fancy", COMMANDS.replace("NAME", name).replace("BAD", kind))
    with pytest.raises(SystemExit) as caught:
        main(["encode", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert "Turn images into tokens" in shown.out
    assert reason in shown.err
    assert "fancy" in shown.err


class Odd(EMAQuantizer):
    answer = staticmethod(lambda output: output)

    def quantize(self, z):
        return self.answer(super().quantize(z))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda output: 3, "does not return"),
        (lambda output: None, "does not return"),
        (lambda output: replace(output, indices=output.indices.int()), "does not return"),
        (lambda output: replace(output, indices=output.indices[:, :, 0]), "does not return"),
        (lambda output: replace(output, z_q=output.z_q[:, :1]), "does not return"),
        (lambda output: replace(output, z_q=output.z_q * torch.nan), "codes that are not finite"),
        (lambda output: replace(output, indices=output.indices + 8), "an index outside its levels"),
        (lambda output: replace(output, indices=output.indices - 9), "an index outside its levels"),
    ],
)
def test_a_quantizer_that_breaks_its_contract_is_named(monkeypatch, answer, reason):
    monkeypatch.setattr(Odd, "answer", staticmethod(answer))
    quantizer = Odd(dim=4, num_tokens=4, codebook_size=8)
    with pytest.raises(PluginError, match=f"the quantizer Odd.* {reason}"):
        quantizer.encode(torch.randn(2, 4, 4))


def test_vectors_that_are_not_finite_are_not_the_quantizer_s_fault(monkeypatch):
    monkeypatch.setattr(Odd, "answer", staticmethod(lambda o: replace(o, z_q=o.z_q * torch.nan)))
    with pytest.raises(InputError, match="vectors to quantise are infinite or NaN"):
        Odd(dim=4, num_tokens=4, codebook_size=8).encode(torch.full((1, 4, 4), torch.nan))


RAISES = """
from spectok import hookimpl

@hookimpl
def spectok_quantizers():
    from spectok_vq.quantizer import EMAQuantizer

    class Sphere(EMAQuantizer):
        "Raise."
        def __init__(self, *, dim: int, num_tokens: int, codebook_size: int = 8):
            raise ValueError("no\\nerror: good news")

    return {"sphere": Sphere}
"""


@pytest.mark.filterwarnings("always")
def test_what_a_plugin_raises_is_one_line_that_names_it(install, capsys, tmp_path):
    install("sphere_pack", RAISES)
    words = ["train", "vqvae", "tokenizer.quantizer.name=sphere", "--output", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        "error: plugin 'sphere_pack' of sphere_pack 1.0 failed (ValueError: no\\nerror: good "
        "news); --debug shows where"
    )


# Registered by place, "module:Name".

PLACED = """
from spectok import hookimpl

@hookimpl
def spectok_quantizers():
    return {"sphere": "PLACE"}
"""
QUANTIZER = """
from spectok_vq.quantizer import EMAQuantizer

class Base(EMAQuantizer):
    renamed_options = {"rate": "decay"}

class Sphere(Base):
    "One code, on a sphere."
"""


@pytest.fixture
def place(install, tmp_path):
    """Install a plugin that registers a place, and the module there."""

    def install_both(name, code=QUANTIZER):
        (tmp_path / "sphere_code.py").write_text(code)
        install("sphere_pack", PLACED.replace("PLACE", name))

    return install_both


def test_a_place_is_listed_and_described_without_being_imported(place):
    place("sphere_code:Sphere")
    assert "sphere" in list_quantizers()
    assert summaries("quantizer")["sphere"] == ("One code, on a sphere.", "sphere_pack 1.0")
    assert provider("quantizer", "sphere") == "sphere_pack 1.0"
    assert "sphere_code" not in sys.modules


def test_a_place_is_imported_when_it_is_used(place):
    place("sphere_code:Sphere")
    assert "sphere_code" not in sys.modules
    assert get_quantizer("ema") is EMAQuantizer
    assert "sphere_code" not in sys.modules
    quantizer = create_quantizer("sphere", dim=4, num_tokens=4, codebook_size=8)
    assert type(quantizer) is sys.modules["sphere_code"].Sphere
    assert type(pickle.loads(pickle.dumps(quantizer))) is type(quantizer)
    assert list_registered("quantizer")["sphere"] is type(quantizer)


def test_options_of_a_place_that_its_base_has_renamed(place):
    place("sphere_code:Sphere")
    assert "sphere_code" not in sys.modules
    assert renamed_options("quantizer", "sphere") == {"rate": "decay"}
    assert "sphere_code" not in sys.modules


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("no_such_code:Sphere", QUANTIZER, "ModuleNotFoundError: No module named 'no_such_code'"),
        ("sphere_code:Spehre", QUANTIZER, "has no attribute 'Spehre'"),
        ("sphere_code:Sphere", "class Sphere(:", "SyntaxError"),
        ("sphere_code:Sphere", "Sphere = 3", "registers 3 as 'sphere', which is not a class"),
        ("sphere_code:Sphere", "class Sphere: pass", "is not a subclass of spectok.quantizers.Qua"),
    ],
)
def test_a_place_where_nothing_is_costs_only_its_plugin(place, name, code, reason):
    place(name, code)
    with pytest.warns(RuntimeWarning, match="plugin 'sphere_pack' of sphere_pack 1.0") as caught:
        found = summaries("quantizer")
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert "ema" in found
    assert "sphere" not in found
    assert "sphere" not in list_quantizers()
    with pytest.raises(UnknownNameError, match="Plugins that failed to load: sphere_pack"):
        get_quantizer("sphere")


def test_a_place_that_fails_when_it_is_used_is_named(place):
    place("sphere_code:Sphere", f"import no_such_library{QUANTIZER}")
    assert summaries("quantizer")["sphere"][0] == "One code, on a sphere."
    with (
        pytest.warns(RuntimeWarning, match=r"'sphere_pack'.*No module named 'no_such_library'"),
        pytest.raises(PluginError, match="'sphere' belongs to a plugin that fails to load: Module"),
    ):
        get_quantizer("sphere")
    assert "ema" in list_registered("quantizer")


@pytest.mark.parametrize("kind", [k for k in HOOKS if k not in ("dataset", "foreign_model")])
def test_the_source_tells_of_our_own_classes_what_they_tell_themselves(kind):
    for name, cls in list_registered(kind).items():
        assert summaries(kind)[name][0] == inspect.getdoc(cls).partition("\n")[0]
        assert class_names(kind)[name] == cls.__name__
        if kind in ("metric", "checkpoint_format"):
            continue
        assert renamed_options(kind, name) == getattr(cls, "renamed_options", {})
        known = known_options(kind, name)
        assert known in (None, list(section_model(cls).model_fields)), name


def test_the_source_tells_the_options_of_every_tokenizer_and_prior_of_our_own():
    for kind in ("tokenizer", "prior"):
        assert all(known_options(kind, name) for name in names(kind))


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
