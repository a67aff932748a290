"""Training against a discriminator: what is added, when, and that no split changes it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1

from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from spectok.loading import load_tokenizer
from spectok.plugins import registry
from spectok.recipes.files import list_recipes
from spectok.testing.small import small_tokenizer
from spectok.training import (
    AdversarialConfig,
    Callbacks,
    LossConfig,
    Run,
    TokenizerRecipe,
    TrainConfig,
    fit,
    train_tokenizer,
)
from spectok.training.adversarial import Adversary, build_discriminator
from spectok.training.checks import hash_bits
from spectok.training.log import read_log
from spectok.training.objective import Objective
from spectok.training.recipe import load_tokenizer_recipe

SMALL = {"name": "patchgan", "num_layers": 1, "channels": 8}
DATA = DataConfig(name="digits", image_size=8, limit=50)
RECIPES = sorted(name for name in list_recipes() if "qggan" in name)


def against(**options):
    return AdversarialConfig.model_validate({"discriminator": SMALL, "start_step": 3} | options)


def train(output, tokenizer, *, adversarial=None, losses=None, resume=False, seed=0, **options):
    """Train a tiny tokenizer for a few steps against a tiny discriminator."""
    defaults = {"steps": 8, "batch_size": 8, "log_every": 1, "sample_every": None, "keep_last": 99}
    config = TrainConfig.model_validate(defaults | {"learning_rate": 1e-3} | options)
    recipe = TokenizerRecipe(
        tokenizer=tokenizer,
        data=DATA,
        train=config,
        losses=losses,
        adversarial=adversarial or against(),
        seed=seed,
    )
    return train_tokenizer(recipe, output, resume=resume)


def weights(output, step, name):
    return load_file(output / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def largest_difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def terms(history):
    """Return every loss of every step, with all its bits."""
    return [{k: v.hex() for k, v in record.items() if "loss" in k} for record in history]


# -- the step --------------------------------------------------------------------------------------


def without_name(options):
    return {key: value for key, value in options.items() if key != "name"}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_adaptive_weight_is_taken_at_the_last_layer_and_applied_everywhere(vqvae, accumulation):
    model = load_tokenizer("vqvae", **without_name(vqvae))
    adversary = Adversary(against(weight=0.75, epsilon=1e-6), model, accumulation, seed=0)
    objective = Objective(model, adversary=adversary)
    objective.begin_step(3)
    batch = {"images": torch.rand(4, 1, 8, 8) * 2 - 1}
    model.train()
    for _ in range(accumulation):
        result = objective(model, batch)
        (sum(result.losses.values()) / accumulation).backward(retain_graph=True)
    weight = (result.metrics | adversary.before_step())["adaptive_weight"]

    own = sum(loss for name, loss in result.losses.items() if name != "generator")
    term = -adversary.pair.network(result.shared.reconstruction).mean()
    assert result.losses["generator"].item() == pytest.approx(term.item())
    (reference,) = torch.autograd.grad(
        result.losses["reconstruction"], model.last_layer, retain_graph=True
    )
    (generator,) = torch.autograd.grad(term, model.last_layer, retain_graph=True)
    expected = (0.75 * reference.norm() / (generator.norm() + 1e-6)).item()
    assert weight.item() == pytest.approx(expected, rel=1e-5)
    assert 0.01 < expected < 1e4, "neither of the two is lost beside the other"
    parameters = list(model.parameters())
    combined = torch.autograd.grad(own + expected * term, parameters)
    for parameter, gradient in zip(parameters, combined):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    assert adversary.before_step() == {}, "each gradient is used once"


def test_last_layer_is_where_each_paper_has_it(vqvae, qgvae):
    grid = load_tokenizer("vqvae", **without_name(vqvae))
    assert grid.last_layer is grid.decoder[-1].weight
    listed = load_tokenizer("qgvae", **without_name(qgvae))
    network = listed.decoder.network
    assert listed.last_layer is network.up["0"].convolution.weight
    assert listed.last_layer is not network.head.weight


@pytest.mark.parametrize("name", registry.list_tokenizers())
def test_last_layer_of_every_tokenizer_is_in_the_way_of_its_images(name):
    model = small_tokenizer(name)
    assert any(parameter is model.last_layer for parameter in model.parameters())
    reconstruction = model(torch.rand(2, *model.image_shape) * 2 - 1).reconstruction
    (gradient,) = torch.autograd.grad(reconstruction.square().sum(), model.last_layer)
    assert gradient.any()


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("adaptive", [True, False])
def test_accumulated_micro_batches_equal_one_big_batch(tmp_path, vqvae, adaptive, alternate):
    adversarial = against(adaptive=adaptive, alternate=alternate, start_step=1)
    options = {"adversarial": adversarial, "steps": 6, "save_every": 6}
    big = train(tmp_path / "big", vqvae, batch_size=8, **options)
    small = train(tmp_path / "small", vqvae, batch_size=2, gradient_accumulation=4, **options)
    for ours, theirs in zip(small.history, big.history, strict=True):
        compared = [name for name in theirs if "loss" in name or name == "adaptive_weight"]
        assert [ours[n] for n in compared] == pytest.approx([theirs[n] for n in compared], rel=2e-4)
    for name in ("discriminator", "model"):
        ours, theirs = (weights(tmp_path / folder, 6, name) for folder in ("small", "big"))
        assert largest_difference(ours, theirs) < 1e-5


# -- the order of things ---------------------------------------------------------------------------


def test_discriminator_waits_and_has_its_own_learning_rate(tmp_path, vqvae):
    adversarial = against(start_step=2, learning_rate=1e-4)
    history = train(tmp_path, vqvae, adversarial=adversarial, steps=4, save_every=1).history
    judged = ["discriminator/loss/hinge" in record for record in history]
    assert judged == ["loss/generator" in r for r in history] == [False, False, True, True]
    assert ["adaptive_weight" in record for record in history] == judged
    before, first, second = (weights(tmp_path, step, "discriminator") for step in (1, 2, 3))
    assert largest_difference(before, first) == 0
    assert largest_difference(first, second) == pytest.approx(1e-4, rel=1e-2)  # Adam's first step


def test_in_turns_one_of_the_two_stands_still(tmp_path, qgvae):
    adversarial = against(start_step=2, alternate=True)
    history = train(tmp_path, qgvae, adversarial=adversarial, steps=6, save_every=1).history
    assert ["loss/reconstruction" in r for r in history] == [True, True, True, False, True, False]
    assert ["discriminator/loss" in r for r in history] == [False, False, False, True, False, True]
    for step in range(3, 7):
        moved = [
            name
            for name in ("model", "discriminator")
            if largest_difference(*(weights(tmp_path, s, name) for s in (step - 1, step)))
        ]
        assert moved == ["model" if step % 2 else "discriminator"]  # step 3 is the one counted 2


def test_terms_of_the_recipe_take_the_place_of_the_tokenizers_own(tmp_path, vqvae):
    losses = LossConfig(start_step=2, replaces=("reconstruction",), l1=0.5, l2=0.1, frequency=2.0)
    history = train(tmp_path, vqvae, losses=losses, steps=4).history
    reconstruction = [
        {k.removeprefix("loss/") for k in r if k.startswith("loss/")} - {"commitment", "generator"}
        for r in history
    ]
    assert reconstruction == [{"reconstruction"}] * 2 + [{"l1", "l2", "frequency"}] * 2
    assert load_tokenizer_recipe(tmp_path / "recipe.yaml").losses == losses


def test_reconstruction_is_divided_by_the_variance_of_the_training_images(tmp_path, vqvae, capsys):
    pixels = build_dataset(DATA).uint8_images() / 255
    scaled = LossConfig.model_validate({"recon_scale": "data_variance"})
    settings = {"adversarial": against(start_step=99), "steps": 1}
    plain = train(tmp_path / "plain", vqvae, **settings).history[0]
    found = train(tmp_path / "scaled", vqvae, losses=scaled, **settings).history[0]
    ratio = plain["loss/reconstruction"] / found["loss/reconstruction"]
    assert ratio == pytest.approx(pixels.var(), rel=1e-5)
    assert found["loss/commitment"] == plain["loss/commitment"]
    assert f"variance of the pixels, {pixels.var():.5g}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"losses\.recon_scale: the run to resume has 'data_var"):
        train(tmp_path / "scaled", vqvae, resume=True, adversarial=against(start_step=99))
    late = LossConfig.model_validate({"recon_scale": "data_variance", "l2": 1.0, "start_step": 5})
    assert train(tmp_path / "late", vqvae, losses=late, **settings).history[0]["loss"] == (
        pytest.approx(found["loss"])
    )


def test_a_scale_needs_images_that_differ_and_a_term_to_scale(vqvae):
    model = load_tokenizer("vqvae", **without_name(vqvae))
    scaled = LossConfig.model_validate({"recon_scale": "data_variance"})
    objective = Objective(model, scaled)
    with pytest.raises(DataError, match="all pixels of the data are equal"):
        objective.measure([{"images": torch.full((1, 8, 8), 0.1)}] * 3)
    with pytest.raises(ConfigError, match="has no term 'reconstruction' to scale, only codebook"):
        objective.check_names(["codebook"])
    model.interior = (0, 0, 4, 8)  # black below: a border, which the losses leave out
    halves = [torch.cat([torch.full((1, 4, 8), v), torch.full((1, 4, 8), -1.0)], 1) for v in (0, 1)]
    objective.measure([{"images": image} for image in halves])
    assert objective.variance == pytest.approx(0.25**2)


def test_perceptual_term_is_balanced_against_the_discriminator(tmp_path, qgvae):
    torch.manual_seed(0)
    network = squeezenet1_1(weights=None)
    torch.save(network.state_dict(), tmp_path / "squeezenet.pth")
    perceptual = {"network": "squeeze", "weights": str(tmp_path / "squeezenet.pth")}
    losses = LossConfig.model_validate({"replaces": ["reconstruction"], "perceptual": perceptual})
    options = without_name(qgvae) | {"image_size": 32}
    model = load_tokenizer("qgvae", **options)
    adversary = Adversary(against(balance=["perceptual"], start_step=0), model, 1, 0)
    result = Objective(model, losses, adversary)(model, {"images": torch.rand(2, 1, 32, 32)})
    assert set(result.losses) == {"perceptual", "codebook", "commitment", "generator"}
    sum(result.losses.values()).backward()
    assert 0 < result.metrics["adaptive_weight"].item() < 1e4


# -- resuming, several processes, precision --------------------------------------------------------


@pytest.mark.parametrize("alternate", [False, True])
def test_resumed_run_is_bitwise_the_same(tmp_path, vqvae, alternate):
    options = {"adversarial": against(alternate=alternate), "ema_decay": 0.9}
    straight = train(tmp_path / "a", vqvae, steps=9, **options)
    train(tmp_path / "b", vqvae, steps=5, **options)
    resumed = train(tmp_path / "b", vqvae, steps=9, resume=True, **options)
    assert terms(resumed.history) == terms(straight.history)
    for name in ("model", "discriminator"):
        ours, theirs = (weights(tmp_path / folder, 9, name) for folder in "ab")
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_resume_refuses_another_adversary(tmp_path, vqvae):
    train(tmp_path, vqvae, steps=1)
    with pytest.raises(ConfigError, match=r"adversarial\.weight: the run to resume has 0\.8"):
        train(tmp_path, vqvae, adversarial=against(weight=0.5), steps=2, resume=True)


def fit_rank(output, options, adversarial, batch_size):
    """Train on one of two ranks; leave a hash of its discriminator behind."""
    model = load_tokenizer("vqvae", **options)
    adversary = Adversary(adversarial, model, 1, 0)
    objective = Objective(model, adversary=adversary)
    callbacks = Callbacks(
        begin_step=objective.begin_step,
        before_step=lambda _: objective.before_step(),
        after_step=lambda _, optimizers: model.after_step(optimizers),
    )
    config = TrainConfig(steps=6, batch_size=batch_size, log_every=1)
    dataset = build_dataset(DATA)
    fit(
        model,
        dataset,
        objective,
        config,
        Run(output),
        callbacks=callbacks,
        phases=[adversary.phase],
    )
    hashes = [int(hash_bits(p)) for m in (adversary.pair, model) for p in m.parameters()]
    (output / f"hashes-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(hashes))


@pytest.mark.parametrize("alternate", [False, True])
def test_two_processes_equal_one_and_each_other(tmp_path, vqvae, fork_ranks, alternate):
    adversarial = against(alternate=alternate, start_step=1)
    options = without_name(vqvae)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    fit_rank(tmp_path / "one", options, adversarial, 8)
    torch.set_rng_state(state)  # the children begin where this process stands
    assert fork_ranks(fit_rank, tmp_path / "two", options, adversarial, 4) == [0, 0]
    ranks = [json.loads((tmp_path / f"two/hashes-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    for theirs, ours in zip(one, two, strict=True):
        compared = [name for name in theirs if "loss" in name or name == "adaptive_weight"]
        assert [ours[n] for n in compared] == pytest.approx([theirs[n] for n in compared], rel=1e-4)


def test_bfloat16(tmp_path, vqvae):
    history = train(tmp_path, vqvae, steps=5, mixed_precision="bf16").history
    assert history[-1]["adaptive_weight"] > 0
    assert torch.isfinite(torch.tensor([r["loss"] for r in history])).all()


# -- what is refused -------------------------------------------------------------------------------


def test_term_that_is_not_finite_is_named(tmp_path, vqvae):
    adversarial = against(learning_rate=1e30, start_step=2)
    with pytest.raises(TrainingError, match=r"(generator|hinge) is not finite at step 4; lower"):
        train(tmp_path, vqvae, adversarial=adversarial)


def test_terms_that_are_not_there_are_refused_at_the_first_step(tmp_path, vqvae):
    late = {"start_step": 100}
    with pytest.raises(ConfigError, match=r"losses\.replaces: 'recon' is not a term of this tok"):
        train(tmp_path / "a", vqvae, losses=LossConfig(replaces=("recon",), start_step=100))
    with pytest.raises(
        ConfigError, match=r"balance: 'perceptual' is not a term when .* the terms then are"
    ):
        train(tmp_path / "b", vqvae, adversarial=against(balance=["perceptual"], **late))
    everything = LossConfig(replaces=("reconstruction",), frequency=1.0)
    with pytest.raises(ConfigError, match=r"balance: 'reconstruction' is not a term when"):
        train(tmp_path / "c", vqvae, losses=everything)


def test_missing_weights_are_refused_before_the_first_step(tmp_path, vqvae, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    large = vqvae | {"image_size": 16}
    losses = LossConfig.model_validate({"perceptual": {}, "start_step": 100})
    with pytest.raises(InputError, match=r"8×8 pixels are too small for LPIPS with vgg"):
        train(tmp_path / "run", vqvae, losses=losses)
    with pytest.raises(CheckpointError, match=r"^losses\.perceptual: .*vgg16-.*weights=FILE"):
        Objective(load_tokenizer("vqvae", **without_name(large)), losses)
    assert not (tmp_path / "run").exists()


def test_half_precision_does_not_suit_compared_gradients(tmp_path, vqvae):
    with pytest.raises(ConfigError, match=r"vanish in fp16; set train\.mixed_precision=bf16"):
        train(tmp_path, vqvae, mixed_precision="fp16")


# -- recipes ---------------------------------------------------------------------------------------


def problem(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_tokenizer_recipe("smoke/qggan", overrides)
    return str(caught.value)


def test_recipe_is_checked_to_the_last_option():
    unknown = problem("adversarial.discriminator=patchgun")
    assert unknown.startswith("adversarial.discriminator.name: unknown discriminator 'patchgun'")
    assert "did you mean 'patchgan'?" in unknown
    option = problem("adversarial.discriminator.num_block=2")
    assert option.startswith(
        "adversarial.discriminator.num_block: unknown key (did you mean 'num_b"
    )
    assert problem("adversarial.wieght=1").startswith("adversarial.wieght: unknown key (did you m")
    assert problem("losses.perceptual.netwrk=vgg").startswith(
        "losses.perceptual.netwrk: unknown key (did you mean 'network'?)"
    )
    assert "losses.l1: Input should be greater than" in problem("losses.l1=-1")
    assert problem("l1=1") == "l1: unknown key (did you mean 'losses.l1'?)"
    assert len(problem("adversarial.weight=0", "train.steps=0").splitlines()) == 2


def test_recipe_fills_in_the_discriminators_options():
    recipe = load_tokenizer_recipe("smoke/qggan", ["adversarial.discriminator.name=patchgan"])
    assert recipe.adversarial.discriminator == {
        "name": "patchgan",
        "num_layers": 3,
        "channels": 64,
        "norm": "group",
    }
    assert load_tokenizer_recipe("vqvae", ["adversarial=null"]).adversarial is None
    assert load_tokenizer_recipe("vqvae", ["adversarial.weight=0.5"]).adversarial.weight == 0.5


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_builds(name):
    recipe = load_tokenizer_recipe(name)
    assert recipe.adversarial.start_step == recipe.losses.start_step
    shape = (recipe.tokenizer["in_channels"], *2 * [recipe.tokenizer["image_size"]])
    with torch.device("meta"):
        network = build_discriminator(recipe.adversarial.discriminator, shape, 0)
    assert sum(p.numel() for p in network.parameters()) > 0
    assert registry.get_registered("discriminator", "pixel_unet") is type(network)


def test_smoke_recipe_trains(tmp_path: Path):
    recipe = load_tokenizer_recipe("smoke/qggan")
    result = train_tokenizer(recipe, tmp_path)
    assert {"loss/l1", "loss/generator", "discriminator/loss/hinge"} <= result.history[-1].keys()
    again = load_tokenizer_recipe(tmp_path / "recipe.yaml")
    assert (again.losses, again.adversarial) == (recipe.losses, recipe.adversarial)
    assert "discriminator" not in {p.name for p in (tmp_path / "model").iterdir()}
