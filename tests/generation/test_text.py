"""Text encoders, the features of captions, and a CLIP of one's own."""

import json
import time

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError, DataError, InputError
from spectok.training.log import read_log
from spectok_generation.text.clip import info_nce, model_config, train_clip
from spectok_generation.text.clip_recipe import ClipConfig, ClipRecipe, load_clip_recipe
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.encoder_loading import load_text_encoder
from spectok_generation.text.features import Captioned, CaptionFeatures, encode_captions

SIZES = ClipConfig(
    embed_dim=12,
    patch_size=16,
    image_layers=1,
    image_width=16,
    text_layers=2,
    text_width=16,
    head_width=8,
    context_length=8,
)
CONFIG = model_config(SIZES, (3, 32, 32))
PROMPTS = ["a large red circle", "ring!", "a small blue cross"]


@pytest.fixture(scope="module")
def clip_folder(save_small_clip, tmp_path_factory):
    """Return the folder of a tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    save_small_clip(folder, CONFIG)
    return folder


@pytest.fixture
def encoder(clip_folder):
    return load_text_encoder(str(clip_folder))


def clip_recipe(**train):
    train = {"steps": 4, "batch_size": 16, "learning_rate": 3e-3, "log_every": 1} | train
    return ClipRecipe.model_validate(
        {
            "clip": SIZES.model_dump(),
            "data": {"name": "shapes", "channels": 3, "limit": 96},
            "train": train,
        }
    )


# -- the encoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.usefixtures("checked_shapes")
def test_the_last_token_is_what_open_clip_pools(kind):
    model = kind(**CONFIG).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    expected = model.encode_text(tokenizer(PROMPTS)).detach()
    encoder = TextEncoder(model, tokenizer, "a test")
    text = encoder(PROMPTS)
    assert text.mask.sum(1).tolist() == [6, 4, 6]  # begin, words, end; "!" is token 0, as padding
    assert (text.features.shape, encoder.width) == ((3, 6, 12), 12)
    last = text.features[torch.arange(3), text.mask.sum(1) - 1]
    torch.testing.assert_close(last, expected)


def test_features_do_not_depend_on_the_batch(encoder):
    text = encoder(PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        length = alone.mask.shape[1]
        torch.testing.assert_close(alone.features[0], text.features[number, :length])
    assert len(encoder(PROMPTS * 30)) == 90


def test_a_tokenizer_from_transformers(clip_folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "ring": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((clip_folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "its own"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    name = "open_clip_model.safetensors"
    save_file(load_file(clip_folder / name), tmp_path / name)
    text = load_text_encoder(str(tmp_path))(["a red ring", "red"])
    assert text.mask.sum(1).tolist() == [3, 1]


def test_prompts_that_are_empty_or_too_long(encoder):
    for prompts in ([], [""], ["a ring", " "]):
        with pytest.raises(InputError, match="the prompt is empty"):
            encoder(prompts)
    with pytest.warns(UserWarning, match="a prompt of 22 tokens is cut off after 8"):
        text = encoder(["red " * 20])
    assert text.mask.all()
    assert text.mask.shape == (1, 8)
    encoder(["a a a a a a"])  # eight tokens with begin and end: a warning would be an error


def test_an_encoder_of_few_words_computes_the_same_and_refuses_others(encoder, tmp_path):
    few = encoder.restricted_to(["a large red circle", "a small blue cross", "ring!"])
    texts = ["ring!", "a small red cross", "blue"]
    whole, part = encoder(texts), few(texts)
    assert torch.equal(whole.features, part.features)
    assert torch.equal(whole.mask, part.mask)
    assert few.fingerprint != encoder.fingerprint
    assert (
        sum(p.numel() for p in few.parameters()) < sum(p.numel() for p in encoder.parameters()) / 9
    )
    few.save_pretrained(tmp_path)
    again = load_text_encoder(str(tmp_path))
    assert again.fingerprint == few.fingerprint
    assert torch.equal(again(texts).features, whole.features)
    with pytest.raises(InputError, match=r"does not know 'purple', in the prompt 'a purple ring'"):
        again(["a red ring", "a purple ring"])
    with pytest.raises(CheckpointError, match="is restricted already"):
        again.restricted_to(["a"])
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    kept = content["vocabulary"]
    for wrong in (
        kept[1:],
        kept[::-1],
        [-1, *kept[1:]],
        [*kept[:-1], "x"],
        7,
        kept[:-1] + kept[:1],
    ):
        path.write_text(json.dumps(content | {"vocabulary": wrong}))
        with pytest.raises(CheckpointError, match="is no rising list of"):
            load_text_encoder(str(tmp_path))


def test_few_words_of_any_kind_of_text_tower(clip_folder, tmp_path):
    whole = {"text_cfg": CONFIG["text_cfg"], "vision_cfg": CONFIG["vision_cfg"]}
    model = open_clip.CustomTextCLIP(CONFIG["embed_dim"], **whole)
    config = {"embed_dim": CONFIG["embed_dim"], "custom_text": True, **whole}
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    encoder = TextEncoder(model, tokenizer, "tower", config=config)
    few = encoder.restricted_to(PROMPTS)
    assert torch.equal(few(PROMPTS).features, encoder(PROMPTS).features)
    few.save_pretrained(tmp_path)
    assert load_text_encoder(str(tmp_path)).fingerprint == few.fingerprint


# -- loading --------------------------------------------------------------------------------------


def test_a_run_a_model_and_a_file_hold_the_same_encoder(clip_folder, tmp_path):
    expected = load_text_encoder(str(clip_folder))
    assert load_text_encoder(str(clip_folder.parent)).fingerprint == expected.fingerprint
    config = tmp_path / "tiny-clip.json"
    config.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(config)
    weights = clip_folder / "open_clip_model.safetensors"
    named = load_text_encoder("tiny-clip", str(weights))
    assert named.fingerprint == expected.fingerprint
    assert named.record["pretrained"] == str(weights)
    state = {f"module.{name}": value for name, value in load_file(weights).items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    again = load_text_encoder("tiny-clip", str(tmp_path / "weights.pt"))
    assert again.fingerprint == expected.fingerprint
    changed = {name: value + 1e-3 for name, value in load_file(weights).items()}
    save_file(changed, tmp_path / "other.safetensors")
    other = load_text_encoder("tiny-clip", str(tmp_path / "other.safetensors"))
    assert other.fingerprint != expected.fingerprint


def test_what_is_not_there_is_said_in_one_line(clip_folder, tmp_path):
    (tmp_path / "cut").mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / "cut" / name).write_bytes((clip_folder / name).read_bytes()[:2000])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    large, quick = "ViT-L-14", "ViT-L-14-quickgelu"
    for error, words, *arguments in [
        (CheckpointError, f"weights 'openai' of {quick} are not on this machine", quick, "openai"),
        (ConfigError, f"trained with another activation; use {quick}", large, "openai"),
        (ConfigError, f"missing; open_clip has weights of {large} called openai, la", large),
        (ConfigError, "'opnai' is neither a file nor a tag", large, "opnai"),
        (ConfigError, f"did you mean '{large}'", "ViT-L14"),
        (ConfigError, "is a folder with weights; leave it out", str(clip_folder), "openai"),
        (CheckpointError, "holds no CLIP", str(tmp_path)),
        (CheckpointError, "cannot load .*cut", str(tmp_path / "cut")),
        (CheckpointError, "cannot load the CLIP .*bare", str(tmp_path / "bare")),
    ]:
        with pytest.raises(error, match=words) as found:
            load_text_encoder(*arguments)
        assert "\n" not in str(found.value)


# -- captions -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked_shapes")
def test_each_different_caption_is_encoded_once(encoder, tmp_path):
    captions, done = [(PROMPTS[i],) for i in (0, 1, 0, 2, 0)], []
    features = encode_captions(encoder, captions, tmp_path / "f", done.append)
    assert done == [3]
    assert len(features) == 5
    found, expected = features.rows([4, 1]), encoder([PROMPTS[0], PROMPTS[1]])
    assert torch.equal(found.mask, expected.mask)
    inside = found.mask
    torch.testing.assert_close(
        found.features[inside], expected.features[inside], rtol=1e-3, atol=1e-3
    )
    assert features.rows([1]).features.shape == (1, 4, 12)
    assert (tmp_path / "f" / "features.bin").stat().st_size == 2 * 12 * (6 + 4 + 6)
    encode_captions(encoder, captions, tmp_path / "f", done.append)
    assert done == [3]


def test_batches_carry_the_features_of_their_rows(encoder, tmp_path):
    dataset = build_dataset(DataConfig(name="shapes", limit=6))
    captions = [dataset[i]["caption"] for i in range(6)]
    features = encode_captions(encoder, [(c,) for c in captions], tmp_path / "f")
    captioned = Captioned(dataset, features)
    batch = captioned.collate([captioned[4], captioned[1]])
    assert batch["label"].tolist() == [dataset[4]["label"], dataset[1]["label"]]
    expected = encoder([captions[4], captions[1]])
    torch.testing.assert_close(batch["text"].features, expected.features, rtol=1e-3, atol=1e-3)


def test_batches_carry_the_caption_that_the_item_carries(encoder, tmp_path):
    texts = [(PROMPTS[0],), (PROMPTS[1], PROMPTS[2], PROMPTS[0]), (PROMPTS[2],)]
    features = encode_captions(encoder, texts, tmp_path / "f")
    assert len(features) == 3
    items = [{"index": 1, "caption_number": 2}, {"index": 2, "caption_number": 0}]
    batch = Captioned(items, features).collate(items)
    for found, prompts in [
        (batch["text"], (PROMPTS[0], PROMPTS[2])),
        (features.rows([1, 2]), (PROMPTS[1], PROMPTS[2])),
    ]:
        expected = encoder(prompts)
        assert torch.equal(found.mask, expected.mask)
        told, wanted = found.features[found.mask], expected.features[found.mask]
        torch.testing.assert_close(told, wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(CheckpointError, match="of other captions"):
        encode_captions(encoder, [texts[0], texts[1][:2], texts[2]], tmp_path / "f")


def test_features_of_other_captions_or_weights_are_refused(encoder, tmp_path):
    folder = tmp_path / "f"
    captions = [(prompt,) for prompt in PROMPTS]
    encode_captions(encoder, captions, folder)
    with pytest.raises(CheckpointError, match="of other captions or of another encoder"):
        encode_captions(encoder, captions[:2], folder)
    other = TextEncoder(open_clip.CLIP(**CONFIG), encoder.tokenizer, "another")
    with pytest.raises(CheckpointError, match="of other captions or of another encoder"):
        encode_captions(other, captions, folder)
    data = (folder / "features.bin").read_bytes()
    (folder / "features.bin").write_bytes(data[:-2])
    with pytest.raises(CheckpointError, match="is damaged"):
        CaptionFeatures(folder)
    with pytest.raises(CheckpointError, match="holds no text features"):
        CaptionFeatures(tmp_path)
    with pytest.raises(DataError, match="no captions to learn from"):
        encode_captions(encoder, None, tmp_path / "g")
    for captions in [[("a ring",), (" ",)], [("a ring",), ()], [("a ring",), ("a disc", "")]]:
        with pytest.raises(DataError, match="image 1 has no caption, or an empty one"):
            encode_captions(encoder, captions, tmp_path / "g")


# -- a CLIP of one's own --------------------------------------------------------------------------


@pytest.mark.usefixtures("checked_shapes")
def test_the_loss_is_info_nce_where_captions_differ():
    images, texts = torch.randn(5, 3), torch.randn(5, 3)
    logits = 7 * images @ texts.T
    diagonal = (logits.log_softmax(1) + logits.log_softmax(0)).diagonal()
    loss, _ = info_nce(images, texts, torch.arange(5)[:, None], torch.tensor(7.0))
    assert loss.item() == pytest.approx(-diagonal.mean().item() / 2, rel=1e-5)
    same, matched = info_nce(texts, texts, torch.zeros(5, 2).long(), torch.tensor(7.0))
    assert same >= np.log(5) - 1e-5  # five equal captions cannot be told apart
    assert matched == 1


def test_it_learns_to_tell_captions_apart(tmp_path):
    result = train_clip(clip_recipe(steps=40, batch_size=32), tmp_path / "run")
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.5
    encoder = load_text_encoder(str(tmp_path / "run"))
    direct = result.model.encode_text(open_clip.SimpleTokenizer(context_length=8)(PROMPTS))
    text = encoder(PROMPTS)
    last = text.features[torch.arange(3), text.mask.sum(1) - 1]
    torch.testing.assert_close(last, direct.detach(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="holds a finished run"):
        train_clip(clip_recipe(), tmp_path / "run")


def test_two_processes_train_what_one_trains(tmp_path, fork_ranks):
    train_clip(clip_recipe(), tmp_path / "one")
    assert fork_ranks(train_clip, clip_recipe(batch_size=8), tmp_path / "two") == [0, 0]
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    expected = [record["loss"] for record in one]
    assert [record["loss"] for record in two] == pytest.approx(expected, rel=1e-4)


def test_bad_recipes(tmp_path):
    assert load_clip_recipe(data="shapes") == load_clip_recipe("clip/shapes")
    assert load_clip_recipe(data="digits").data.channels == 3
    with pytest.raises(ConfigError, match=r"clip.patch_sise: unknown key \(did you mean"):
        load_clip_recipe("clip/shapes", ["clip.patch_sise=4"])
    with pytest.raises(ConfigError, match="no recipe qgvae/digits of a CLIP; choose from"):
        load_clip_recipe("qgvae/digits")
    with pytest.raises(ConfigError, match="16 does not fit images of shape"):
        model_config(SIZES, (3, 40, 40))
    with pytest.raises(ConfigError, match=r"clip.text_width: 20 is no multiple"):
        model_config(SIZES.model_copy(update={"text_width": 20}), (3, 32, 32))
    with pytest.raises(DataError, match="data digits has no captions"):
        train_clip(load_clip_recipe(data="digits"), tmp_path)


def late_rank(clip_folder, directory):
    """Rank 1 arrives when rank 0 is done: it must not skip what rank 0 waited in."""
    from spectok.training import TrainConfig
    from spectok.training.launch import accelerated

    with accelerated(TrainConfig(), directory) as accelerator:
        if accelerator.process_index == 1:
            while not (directory / "features" / "header.json").exists():
                time.sleep(0.01)
        features = encode_captions(
            load_text_encoder(str(clip_folder)), ["a", "b", "a"], directory / "features"
        )
        number = torch.tensor(float(accelerator.process_index + 1))
        assert accelerator.reduce(number, "sum") == 3.0
        assert len(features) == 3
        (directory / str(accelerator.process_index)).write_text("done")


def test_a_process_that_comes_late_passes_the_same_barriers(clip_folder, tmp_path, fork_ranks):
    assert fork_ranks(late_rank, clip_folder, tmp_path) == [0, 0]
    assert (tmp_path / "1").exists()
