"""The playground without its page: what is read, shown and drawn, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectok import load_tokenizer
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.images import to_pil
from spectok.testing.small import small_tokenizer
from spectok_generation import create_prior, draw_images
from spectok_generation.playground import drawing, views
from spectok_generation.playground import pictures as shown
from spectok_generation.playground.desk import make_desk
from spectok_generation.playground.subjects import Subject, Subjects, check_names, is_prior
from spectok_generation.records import tokenizer_record

SMALL = {"num_layers": 1, "num_heads": 2, "width": 16}


@pytest.fixture(scope="module")
def subject():
    """Return a grid tokenizer with random weights and a prior by class."""
    return with_prior("vqvae", num_classes=3)


def with_prior(key, kind="gpt", **options):
    torch.manual_seed(1)
    tokenizer = small_tokenizer(key).eval()
    sizes = SMALL if kind == "gpt" else {"channels": [8, 16], "layers": 1, "attention_levels": [1]}
    record = tokenizer_record(tokenizer)
    prior = create_prior(kind, tokenizer.token_spec, tokenizer=record, **sizes, **options)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.3)
    return Subject("mine", tokenizer, prior.eval())


@pytest.fixture
def picture(tmp_path):
    """Save a picture that is neither square nor grey."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def tokens_of(subject):
    images = torch.rand(1, *subject.tokenizer.image_shape) * 2 - 1
    return views.encode(subject.tokenizer, images)


# -- models ----------------------------------------------------------------------------------------


def test_without_a_model_the_installed_ones_are_offered():
    names = check_names([])
    assert "vqvae/mnist" in names
    assert check_names(["vqvae/mnist", "vqvae/mnist"]) == ["vqvae/mnist"]
    with pytest.raises(ConfigError, match="names an untrained tokenizer"):
        check_names(["vqvae"])
    with pytest.raises(CheckpointError, match="does not exist"):
        check_names(["./nowhere"])


def test_a_prior_is_told_from_a_tokenizer_and_loaded_with_its_own(tmp_path):
    made = with_prior("vqvae")
    made.tokenizer.save_pretrained(tmp_path / "tokenizer" / "model")
    made.prior.save_pretrained(tmp_path / "model")
    assert is_prior(str(tmp_path))
    assert not is_prior("vqvae/mnist")
    subjects = Subjects([str(tmp_path)])
    loaded = subjects[str(tmp_path)]
    assert "prior GPT" in loaded.describe()
    assert subjects[str(tmp_path)] is loaded
    with pytest.raises(ConfigError, match="'vqvae/mnist' is not offered here"):
        subjects["vqvae/mnist"]


def test_examples_are_in_the_shape_of_the_model():
    grey = Subject("grey", small_tokenizer("vqvae", in_channels=1, image_size=16).eval())
    assert grey.examples.shape == (12, 1, 16, 16)
    assert grey.describe() == "VQVAE: 16×16 grey, 16 tokens, 80 bits an image"
    colour = Subject("colour", small_tokenizer("vqvae", in_channels=3, image_size=16).eval())
    assert colour.examples.shape == (9, 3, 16, 16)


# -- pictures --------------------------------------------------------------------------------------


def test_uploads_are_read_in_the_shape_of_the_model(subject, picture):
    images = shown.read_uploads([str(picture), str(picture)], subject.tokenizer)
    assert images.shape == (2, 1, 16, 16)
    assert torch.equal(images[:1], subject.tokenizer.processor(picture))


def test_bad_uploads_are_refused_in_words(subject, picture, tmp_path, monkeypatch):
    def refused(*paths):
        with pytest.raises(InputError) as found:
            shown.read_uploads([str(path) for path in paths], subject.tokenizer)
        assert "\n" not in str(found.value)
        return str(found.value)

    (tmp_path / "text.png").write_text("no image")
    assert "text.png is no image that can be read" in refused(tmp_path / "text.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:200])
    assert "cut.png is no image that can be read" in refused(cut)
    assert "no file was given" in refused()
    assert "17 files at once are over 16" in refused(*[picture] * 17)
    assert "gone.png cannot be read (No such file" in refused(tmp_path / "gone.png")
    monkeypatch.setattr(shown, "MAX_PIXELS", 100)
    assert "mine.png has 40×24 pixels; at most 100 are taken" in refused(picture)
    monkeypatch.setattr(shown, "MAX_BYTES", 1 << 10)
    assert "MiB; at most 0 are taken" in refused(picture)


def test_small_pictures_are_enlarged_exactly():
    image = torch.rand(3, 16, 16) * 2 - 1
    large = shown.show(image)
    assert large.size == (256, 256)
    assert large.resize((16, 16), Image.Resampling.NEAREST).tobytes() == to_pil(image).tobytes()
    assert shown.show(torch.zeros(1, 300, 20)).size == (20, 300)
    assert shown.show_difference(image, image).getextrema() == ((0, 0),) * 3


def test_paint_becomes_pixels_of_the_image():
    layer = np.zeros((256, 256, 4), np.uint8)
    layer[0:20, 40:41, 3] = 255  # rows 0 and 1, column 2 of 16 x 16
    region = shown.painted({"background": None, "layers": [layer]}, (16, 16))
    assert np.argwhere(region).tolist() == [[0, 2], [1, 2]]
    for nothing in ({"layers": [np.zeros_like(layer)]}, {"layers": []}, None):
        with pytest.raises(InputError, match="nothing is painted"):
            shown.painted(nothing, (16, 16))


def test_a_desk_keeps_uploads_when_the_model_changes(subject, picture):
    desk = make_desk(subject)
    assert len(desk.images) == 12
    added = desk.add(subject, [str(picture)])
    assert (len(added.images), added.chosen) == (13, 12)
    assert added.choose(3).choose_second(4).second == 4
    colour = Subject("colour", small_tokenizer("vqvae", in_channels=3, image_size=16).eval())
    other = make_desk(colour, added)
    assert (len(other.images), other.name, other.uploads) == (10, "colour", (str(picture),))
    assert other.chosen == 9  # as near to the picture chosen before as there is one
    with pytest.raises(InputError, match=r"picture 13 is not one of 0\.\.12"):
        added.choose(13)
    with pytest.raises(InputError, match="are over 16"):
        added.add(subject, [str(picture)] * 16)


# -- tokens ----------------------------------------------------------------------------------------


def test_reconstruction_says_what_it_costs(subject):
    images = torch.rand(1, 1, 16, 16) * 2 - 1
    original, again, difference, words = views.reconstruct(subject.tokenizer, images)
    assert original.tobytes() == shown.show(images[0]).tobytes()
    tokens = subject.tokenizer.encode(images)
    assert again.tobytes() == views.decode(subject.tokenizer, tokens).tobytes()
    assert difference.getextrema()[1] > 0
    assert "16 tokens, 80 bits: 1/26 of the 2,048 bits of its pixels" in words


def test_tables_hold_every_token():
    tree = small_tokenizer("hrvqvae").eval()
    spec, tokens = tree.token_spec, tokens_of(Subject("tree", tree))
    page = views.token_tables(spec, tokens)
    assert page.count("<table") == spec.num_levels
    assert page.count("<td") == spec.num_tokens
    cells = [int(cell.partition("</td>")[0].partition(">")[2]) for cell in page.split("<td")[1:]]
    assert cells == torch.cat([level.flatten() for level in spec.unflatten(tokens)]).tolist()


@pytest.mark.parametrize("key", ["hrvqvae", "qgvae", "vqvae"])
def test_first_tokens_decode_or_it_says_why_not(key):
    tokenizer = small_tokenizer(key).eval()
    tokens, spec = tokens_of(Subject(key, tokenizer)), tokenizer.token_spec
    strip = views.prefix_strip(tokenizer, tokens)
    assert strip[-1][0].tobytes() == views.decode(tokenizer, tokens).tobytes()
    assert strip[-1][1] == f"{spec.num_tokens} tokens"
    assert bool(views.why_no_prefix(spec)) == (key == "vqvae") == (len(strip) == 1)


def test_influence_of_a_level():
    tree = small_tokenizer("hrvqvae").eval()
    pictures, words = views.influences(tree, tokens_of(Subject("tree", tree)), level=1)
    count = tree.token_spec.levels[1].num_tokens
    assert [name for _, name in pictures] == [f"token {number}" for number in range(count)]
    assert words.startswith(f"{count} tokens, 4 other values each")
    assert max(image.getextrema()[0][1] for image, _ in pictures) > 200  # one is brightest


def test_what_is_swapped():
    tree = small_tokenizer("hrvqvae").eval()
    spec = tree.token_spec
    first, second = (tokens_of(Subject("tree", tree)) for _ in range(2))
    for share, equal in [(0.0, first), (1.0, second)]:
        for choice in (views.FIRST, views.LEFT, views.TOP):
            places = views.places_to_swap(spec, choice, share)
            mixed = views.swap(tree, first, second, places)
            assert mixed.tobytes() == views.decode(tree, equal).tobytes()
    for level in spec.unflatten(views.places_to_swap(spec, views.LEFT, 0.5)[None].long()):
        half = level.shape[-1] // 2
        assert level[..., :half].all()
        assert not level[..., half:].any()
    levels = spec.unflatten(views.places_to_swap(spec, "level 1", 0.0)[None].long())
    assert [number for number, level in enumerate(levels) if level.any()] == [1]
    assert levels[1].all()
    with pytest.raises(InputError, match="'level 9' is none of the left side, the top"):
        views.places_to_swap(spec, "level 9", 0.5)
    with pytest.raises(InputError, match="share 2 is not within"):
        views.places_to_swap(spec, views.TOP, 2)
    listed = small_tokenizer("qgvae").token_spec
    assert views.swap_choices(listed) == [views.FIRST]


def test_codes_at_one_place(subject):
    tokens = tokens_of(subject)
    pictures = views.draw_codes(subject.tokenizer, tokens, 5)
    own = int(tokens[0, 5])
    assert [name for _, name in pictures] == [
        f"{code} (its own)" if code == own else str(code) for code in range(32)
    ]
    assert pictures[own][0].tobytes() == views.decode(subject.tokenizer, tokens).tobytes()
    assert len(views.draw_codes(subject.tokenizer, tokens, 5, start=30)) == 2
    with pytest.raises(InputError, match=r"code 32 is not one of 0\.\.31"):
        views.draw_codes(subject.tokenizer, tokens, 5, start=32)
    with pytest.raises(InputError, match=r"token 16 is not one of 0\.\.15"):
        views.draw_codes(subject.tokenizer, tokens, 16)
    assert "32 values, one codebook for all positions" in views.describe_codebooks(
        subject.tokenizer
    )
    trained = views.describe_codebooks(load_tokenizer("vqvae/mnist"))
    assert "% of 256 codes were chosen" in trained


# -- drawing ---------------------------------------------------------------------------------------


def test_samples_are_those_of_the_command(subject):
    assert drawing.class_choices(subject) == [drawing.TURNS, "0", "1", "2"]
    drawn = drawing.draw_samples(subject, 3, label=drawing.TURNS, seed=4, temperature=0.9)
    options = drawing.make_options(subject.prior, {"temperature": 0.9})
    labels = drawing.choose_labels(subject.prior, 3)
    same = draw_images(subject.prior, subject.tokenizer, 3, labels, seed=4, options=options)
    assert [image.tobytes() for image in drawn] == [shown.show(one).tobytes() for one in same]
    one = drawing.draw_samples(subject, 1, label="2", seed=4)
    assert one[0].size == (256, 256)
    for wrong, words in [
        ({"count": 17}, "17 images are not within 1 to 16"),
        ({"label": "7"}, "class 7 is not one of"),
        ({"label": "all"}, "class 'all' is no number"),
        ({"temperature": 0.0}, "temperature 0.0 must be at least 1e-06"),
        ({"seed": -1}, "seed -1"),
    ]:
        with pytest.raises(InputError, match=words):
            drawing.draw_samples(subject, **{"count": 1} | wrong)


def test_a_painted_part_is_drawn_anew_and_the_rest_kept(subject, monkeypatch):
    tokens = tokens_of(subject)
    region = np.zeros((16, 16), dtype=bool)
    region[5, 6:9] = True  # touches the cells (1, 1) and (1, 2) of 4 x 4
    again = drawing.places_of(subject.tokenizer, tokens, region)
    assert again.nonzero().flatten().tolist() == [5, 6]
    seen = []

    def watched(*arguments, **options):
        seen.append(options.get("known"))
        return draw_images(*arguments, **options)

    monkeypatch.setattr(drawing, "draw_images", watched)
    variants, words = drawing.redraw(subject, tokens, region, 4, label="1", seed=2)
    assert words == "2 of 16 tokens drawn anew."
    assert len({image.tobytes() for image in variants}) > 1
    assert seen[0].keep.sum(1).tolist() == [14] * 4
    assert torch.equal(seen[0].indices, tokens.expand(4, -1))
    whole, words = drawing.redraw(subject, tokens, np.ones((16, 16), dtype=bool), 1, label="1")
    assert words == "16 of 16 tokens drawn anew."
    assert whole[0].tobytes() == drawing.draw_samples(subject, 1, label="1")[0].tobytes()


def test_of_a_list_the_tokens_that_change_the_region_most_are_drawn():
    listed = with_prior("qgvae")
    tokens = tokens_of(listed)
    region = np.zeros((16, 16), dtype=bool)
    region[:4, :4] = True
    again = drawing.places_of(listed.tokenizer, tokens, region)
    assert 0 < int(again.sum()) < listed.tokenizer.token_spec.num_tokens
    variants, _ = drawing.redraw(listed, tokens, region, 2)
    assert len(variants) == 2


def test_what_a_model_cannot_draw_is_said():
    alone = Subject("alone", small_tokenizer("vqvae").eval())
    assert "takes a prior of its tokens" in drawing.why_no_samples(alone)
    with pytest.raises(InputError, match="takes a prior"):
        drawing.draw_samples(alone, 1)
    latent = with_prior("vqvae", "ldm", num_timesteps=10)
    assert drawing.why_no_samples(latent) == ""
    with pytest.raises(InputError, match="LDM draws latents, and cannot keep"):
        drawing.redraw(latent, tokens_of(latent), np.ones((16, 16), dtype=bool), 1)
    assert len(drawing.draw_samples(latent, 2, temperature=1.0)) == 2


# -- the command -----------------------------------------------------------------------------------


def test_the_command_refuses_before_anything_heavy_is_imported(spectok, monkeypatch):
    status, _, complaint = spectok("ui", "./nowhere")
    assert (status, complaint.count("\n")) == (2, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, complaint = spectok("ui")
    assert status == 2
    assert complaint == (
        "error: the page needs the library gradio; install it by pip install 'spectok[ui]'\n"
    )


def test_only_the_page_knows_gradio():
    folder = Path(drawing.__file__).parent
    known = {path.name for path in folder.glob("*.py") if "import gradio" in path.read_text()}
    assert known == {"page.py", "tabs.py"}
