"""Latent diffusion: what it learns, what it draws, what it refuses."""

import pytest
import torch
from PIL import Image

from spectok import list_tokenizers, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.testing.small import small_tokenizer
from spectok.training.log import read_log
from spectok_generation import create_prior, load_prior
from spectok_generation.conditions import TextFeatures
from spectok_generation.diffusion import DiffusionOptions, sample_latents
from spectok_generation.diffusion.latents import encode_latents, measure_latents
from spectok_generation.drawing import draw_batch, draw_images
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.prior_recipe import PriorRecipe, load_prior_recipe
from spectok_generation.records import tokenizer_record
from spectok_generation.sampling import SamplingOptions
from spectok_generation.text.features import CaptionFeatures
from spectok_generation.training import train_prior

LDM = {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 40}
TRAIN = {"steps": 3, "batch_size": 8, "learning_rate": 3e-3, "log_every": 1, "sample_every": None}
KINDS = {  # what the network predicts, and the schedulers that can take its steps
    "epsilon": ["ddpm", "ddim"],
    "sample": ["ddpm", "ddim"],
    "v_prediction": ["ddpm", "ddim"],
    "flow": ["flow"],
}


def recipe_for(tokenizer, prior=None, **sections):
    train = TRAIN | sections.pop("train", {})
    defaults = {"data": {"name": "digits", "limit": 50}}
    prior = {"name": "ldm"} | LDM | (prior or {})
    return PriorRecipe.model_validate(
        {"prior": prior, "tokenizer": str(tokenizer), "train": train} | defaults | sections
    )


def build(latent_shape=(3, 4, 4), spread=0.05, **options):
    """Return an LDM that needs no tokenizer, its weights spread so that inputs matter."""
    tokenizer = load_tokenizer("vqvae", image_size=16, channels=8, residual_channels=4)
    record = tokenizer_record(tokenizer) | {"latent_shape": list(latent_shape)}
    torch.manual_seed(0)
    prior = create_prior("ldm", tokenizer.token_spec, tokenizer=record, **(LDM | options))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return prior.eval()


def texts(count=5, length=6):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, length, 12, generator=generator)
    return TextFeatures(features, torch.rand(count, length, generator=generator) < 0.7)


# -- the network and the noise ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 7, 7), (5, 1, 3), (1, 6, 9)])
def test_latents_of_any_size_keep_it(shape):
    prior = build(shape, channels=[8, 16, 16], attention_levels=[])
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    times, condition = torch.tensor([3, 30]), prior.null_condition(2)
    prediction = prior.denoiser(latents, times, condition)
    assert prediction.shape == latents.shape
    before = [-size % 4 // 2 for size in shape[1:]]
    inside = (..., *(slice(b, b + size) for b, size in zip(before, shape[1:])))
    padded = torch.zeros(2, shape[0], *(s + -s % 4 for s in shape[1:]))
    padded[inside] = latents
    assert torch.equal(prediction, prior.denoiser(padded, times, condition)[inside])
    assert sample_latents(prior, [0, 1]).shape == latents.shape


@pytest.mark.parametrize(("kind", "name"), [(k, name) for k in KINDS for name in KINDS[k]])
def test_a_perfect_network_finds_the_latents(kind, name):
    """With the target as its prediction, every scheduler must come back to what was noised."""
    prior = build(prediction=kind, num_timesteps=1000)
    mean, std = torch.tensor([5.0, -1.0, 0.0]), torch.tensor([0.1, 4.0, 1.0])
    prior.set_statistics(mean, std)
    truth = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def know_it(noisy, times, condition):
        share = times[0] / 1000 if kind == "flow" else None
        if kind == "flow":
            return (noisy - truth) / share
        keep = prior.noise_schedule._diffusion.alphas_cumprod[times[0]]
        noise = (noisy - keep.sqrt() * truth) / (1 - keep).sqrt()
        velocity = keep.sqrt() * noise - (1 - keep).sqrt() * truth
        return {"epsilon": noise, "sample": truth, "v_prediction": velocity}[kind]

    prior.denoiser.forward = know_it
    options = DiffusionOptions(name, 10)
    found = sample_latents(prior, [0, 1], options=options)
    assert torch.allclose(found, prior.restore(truth), atol=2e-3)
    assert torch.allclose(found.mean((0, 2, 3)), mean + std * truth.mean((0, 2, 3)), atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_grows_and_targets_fit(kind):
    schedule = build(prediction=kind, num_timesteps=1000).noise_schedule
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2000, 1, 2, 2, generator=generator) for _ in range(2))
    first = schedule.add_noise(latents, noise, torch.zeros(2000))
    last = schedule.add_noise(latents, noise, torch.full((2000,), 0.9999))
    assert torch.allclose(first.noisy, latents, atol=0.05)
    assert torch.allclose(last.noisy, noise, atol=0.05)
    assert first.times.max() < last.times.min() < 1000
    expected = {"epsilon": noise, "sample": latents, "flow": noise - latents}
    if kind == "v_prediction":
        assert torch.allclose(first.target, noise, atol=0.05)
        assert torch.allclose(last.target, -latents, atol=0.05)
    else:
        assert torch.equal(first.target, expected[kind])


# -- conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "text"])
def test_conditions_count_and_guidance_of_one_is_the_condition(kind):
    given = {"num_classes": 4} if kind == "class" else {"text": {"width": 12}}
    condition = torch.tensor([0, 1, 2, 3, 1]) if kind == "class" else texts()
    prior = build(condition_dropout=0.2, **given)

    def draw(condition, guidance=1.0):
        options = DiffusionOptions(num_steps=4, guidance=guidance)
        return sample_latents(prior, range(5), condition, options=options)

    conditional, without = draw(condition), draw(None)
    swapped = draw(condition[[1, 0, 2, 3, 4]])
    assert torch.allclose(conditional[2:], swapped[2:], atol=1e-4)
    assert (conditional[:2] - swapped[:2]).abs().amax((1, 2, 3)).min() > 1e-2
    assert (conditional - without).abs().amax((1, 2, 3)).min() > 1e-2
    assert torch.allclose(draw(condition, 1.0 + 1e-7), conditional, atol=1e-4)
    assert torch.allclose(draw(condition, 0.0), without, atol=1e-4)
    assert (draw(condition, 3.0) - conditional).abs().max() > 1e-2


def test_guidance_goes_beyond_the_condition_in_proportion_to_the_scale():
    """One Euler step is linear in the prediction, so the latents show the formula."""
    prior, labels = build(prediction="flow", num_classes=4, condition_dropout=0.2), torch.arange(4)
    without, conditional, guided = (
        sample_latents(prior, range(4), labels, options=DiffusionOptions("flow", 1, guidance))
        for guidance in (0.0, 1.0, 3.0)
    )
    assert (conditional - without).abs().max() > 0.01
    assert torch.allclose(guided, without + 3 * (conditional - without), atol=1e-4)


def test_a_text_without_tokens_is_no_text():
    prior = build(text={"width": 12}, condition_dropout=0.2)
    empty = TextFeatures(texts().features, torch.zeros(5, 6, dtype=torch.bool))
    options = DiffusionOptions(num_steps=4)
    drawn = [sample_latents(prior, range(5), text, options=options) for text in (empty, None)]
    assert torch.allclose(*drawn, atol=1e-5)


@pytest.mark.parametrize("given", [{}, {"num_classes": 4}, {"text": {"width": 12}}])
def test_loss_falls(given):
    prior = build(condition_dropout=0.1, prediction="sample", spread=0.0, **given).train()
    condition = torch.arange(16) % 4 if "num_classes" in given else None
    condition = texts(16) if "text" in given else condition
    latents = 3 + torch.linspace(-2, 2, 16).view(16, 1, 1, 1).expand(16, 3, 4, 4)
    prior.set_statistics(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    optimizer, losses = torch.optim.Adam(prior.parameters(), 3e-3), []
    for _ in range(24):
        loss = prior(latents, condition).losses["denoising"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


# -- sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "ddim", "flow"])
def test_an_image_depends_on_its_number_alone(name):
    prior = build(prediction="flow" if name == "flow" else "epsilon", num_classes=4)
    options, classes = DiffusionOptions(name, 5), torch.arange(6) % 4
    state = torch.get_rng_state()
    together = sample_latents(prior, range(6), classes, seed=3, options=options)
    assert torch.equal(torch.get_rng_state(), state)
    some = sample_latents(prior, [4, 1], classes[[4, 1]], seed=3, options=options)
    assert torch.allclose(some, together[[4, 1]], atol=1e-4)
    other = sample_latents(prior, range(6), classes, seed=4, options=options)
    assert (other - together).abs().amax((1, 2, 3)).min() > 0.1
    assert (together[0] - together[4]).abs().max() > 0.1  # of one class


def test_a_prior_is_drawn_by_its_own_scheduler_unless_told_otherwise():
    drawn = {
        "own": build(num_timesteps=12, scheduler="ddpm", num_steps=6),
        "given": build(num_timesteps=12),
    }
    drawn["given"].load_state_dict(drawn["own"].state_dict())
    told = DiffusionOptions("ddpm", 6)
    own = sample_latents(drawn["own"], [0, 1])
    assert torch.equal(own, sample_latents(drawn["given"], [0, 1], options=told))
    assert not torch.equal(own, sample_latents(drawn["given"], [0, 1]))
    schedule = drawn["own"].noise_schedule
    assert len(schedule.make_sampler(None, 4, "cpu").timesteps) == 4
    assert len(schedule.make_sampler("ddpm", None, "cpu").timesteps) == 6
    assert len(schedule.make_sampler("ddim", None, "cpu").timesteps) == 12  # 6 were of ddpm
    assert type(schedule.make_sampler(None, 4, "cpu")).__name__ == "DDPMScheduler"


@pytest.mark.parametrize("name", ["celeba64", "cifar10", "lsun_church128", "mnist"])
def test_fqvaes_recipes_draw_in_the_papers_thousand_steps(name):
    options = load_prior_recipe(f"ldm/fqvae_{name}").prior
    kept = ("prediction", "num_timesteps", "scheduler", "num_steps")
    sampler = build(**{key: options[key] for key in kept}).noise_schedule.make_sampler(
        None, None, "cpu"
    )
    assert (type(sampler).__name__, len(sampler.timesteps)) == ("DDPMScheduler", 1000)


@pytest.mark.parametrize("num_steps", [1, 4, 7, 40])
def test_flow_takes_equal_steps_down_to_the_latents(num_steps):
    schedule = build(prediction="flow").noise_schedule
    sampler = schedule.make_sampler("flow", num_steps, "cpu")
    assert sampler.timesteps[0] == 40  # pure noise, on the scale of training
    lengths = -sampler.sigmas.diff()
    assert torch.allclose(lengths, torch.full((num_steps,), 1 / num_steps), atol=1e-6)
    latents, noise = torch.randn(2, 1, 3, 4, 4)
    current = noise
    for time in sampler.timesteps:
        current = sampler.step(noise - latents, time, current).prev_sample
    assert torch.allclose(current, latents, atol=1e-5)


def test_a_network_that_computes_nothing_finite_draws_nothing():
    prior = build()
    with torch.no_grad():
        next(prior.parameters()).fill_(torch.inf)
    with pytest.raises(InputError, match="not finite"):
        sample_latents(prior, [0], options=DiffusionOptions(num_steps=2))


# -- with tokenizers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_tokenizers())
def test_any_tokenizers_latents_are_learned_and_drawn(name, request):
    torch.manual_seed(0)
    tokenizer = small_tokenizer(name).eval()
    images = 2 * torch.rand(16, *tokenizer.image_shape) - 1
    record, latents = tokenizer_record(tokenizer), encode_latents(tokenizer, images)
    prior = create_prior("ldm", tokenizer.token_spec, tokenizer=record, **LDM)
    request.getfixturevalue("checked_shapes")
    prior.set_statistics(*measure_latents(tokenizer, [{"images": image} for image in images]))
    prior.train()(latents).losses["denoising"].backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())

    standard = prior.standardise(latents)
    assert torch.allclose(prior.restore(standard), latents, rtol=1e-4, atol=1e-5)
    changing = latents.std((0, 2, 3)) > 1e-5 * latents.mean((0, 2, 3)).abs()
    assert standard.mean((0, 2, 3))[changing].abs().max() < 1e-2
    assert (standard.std((0, 2, 3))[changing] - 1).abs().max() < 0.2  # few values, n or n - 1
    drawn = draw_images(prior, tokenizer, 3, options=DiffusionOptions(num_steps=2), batch_size=2)
    assert drawn.shape == (3, *tokenizer.image_shape)
    assert drawn.isfinite().all()


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory):
    """Return the folder of a tokenizer with random weights, and of a prior of its latents."""
    folder = tmp_path_factory.mktemp("ldm")
    torch.manual_seed(1)
    small_tokenizer("vqvae").save_pretrained(folder / "tokenizer")
    train = {"ema_decay": 0.9, "sample_every": 3}
    train_prior(recipe_for(folder / "tokenizer", train=train), folder / "run")
    return folder / "tokenizer", folder / "run"


def test_saved_and_loaded_it_draws_the_same(tokenizer_run, tmp_path):
    tokenizer, run = load_tokenizer(tokenizer_run[0]), tokenizer_run[1]
    assert (run / "samples" / "step-00000003.png").stat().st_size > 0
    data = build_dataset(DataConfig(name="digits", limit=50))
    mean, std = measure_latents(tokenizer, data, batch_size=7)
    first, second = load_prior(run), load_prior(run / "model")
    assert torch.allclose(first.latent_mean, mean)
    assert torch.allclose(first.latent_std, std)
    drawn = [sample_latents(prior, range(4), torch.arange(4)) for prior in (first, second)]
    assert torch.equal(*drawn)
    next(tokenizer.parameters()).data.view(-1)[0] += 1
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="give the tokenizer it was trained with"):
        load_pair(run, tmp_path / "other")


def test_two_processes_train_and_draw_what_one_does(tokenizer_run, tmp_path, fork_ranks):
    train = {"ema_decay": 0.9, "sample_every": 3, "batch_size": 4}
    two = tmp_path / "two"
    assert fork_ranks(train_and_draw, recipe_for(tokenizer_run[0], train=train), two) == [0, 0]
    one, other = (read_log(folder / "log.jsonl") for folder in (tokenizer_run[1], two))
    expected = [record["loss"] for record in one]
    assert [record["loss"] for record in other] == pytest.approx(expected, rel=1e-4)
    alone = draw_images(*load_pair(two), 5, torch.arange(5), options=DiffusionOptions(num_steps=4))
    for rank in range(2):
        assert torch.allclose(torch.load(two / f"{rank}.pt"), alone, atol=1e-3)


def train_and_draw(recipe, output):
    import os
    from pathlib import Path

    from spectok.training import TrainConfig
    from spectok.training.launch import accelerated

    train_prior(recipe, output)
    with accelerated(TrainConfig(), Path()):
        options = DiffusionOptions(num_steps=4)
        images = draw_images(*load_pair(output), 5, torch.arange(5), options=options, batch_size=2)
    torch.save(images, output / f"{os.environ['RANK']}.pt")


def test_captioned_images_are_learned_and_a_text_is_drawn(save_small_clip, tmp_path):
    save_small_clip(tmp_path / "clip" / "model")
    small_tokenizer("vqvae", in_channels=3).save_pretrained(tmp_path / "tokenizer")
    sections = {
        "data": {"name": "shapes", "limit": 20},
        "text": {"encoder": str(tmp_path / "clip")},
    }
    recipe = recipe_for(tmp_path / "tokenizer", {"condition_dropout": 0.2}, **sections)
    train_prior(recipe, tmp_path / "run")
    prior, tokenizer = load_pair(tmp_path / "run")
    assert (prior.condition_name, prior.text_width) == ("text", 12)
    texts = load_encoder(prior, tmp_path / "run")(["a large red circle", "a small blue ring"])
    options = DiffusionOptions(num_steps=2, guidance=2.0)
    assert draw_images(prior, tokenizer, 2, texts, options=options).shape == (2, 3, 16, 16)


def test_a_latent_prior_learns_every_caption_in_its_turn(save_small_clip, tmp_path, monkeypatch):
    save_small_clip(tmp_path / "clip" / "model")
    small_tokenizer("vqvae", in_channels=3).save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (16, 16)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a ring\na disc\na square\n")
    (folder / "b.txt").write_text("a cross\n")
    seen = []
    rows = CaptionFeatures.rows

    def note(self, indices, numbers=None):
        seen.extend(zip(indices, numbers or ()))
        return rows(self, indices, numbers)

    monkeypatch.setattr(CaptionFeatures, "rows", note)
    sections = {
        "data": {"name": "folder", "path": str(folder), "num_held_out": 0},
        "text": {"encoder": str(tmp_path / "clip")},
        "train": {"steps": 6, "batch_size": 2},
    }
    train_prior(recipe_for(tmp_path / "tokenizer", **sections), tmp_path / "run")
    turns = sorted([[number for row, number in seen if row == r] for r in (0, 1)], key=max)
    assert turns[0] == [0] * 6  # of the image with one caption
    assert sorted(turns[1][:3]) == sorted(turns[1][3:]) == [0, 1, 2]


# -- what is refused -------------------------------------------------------------------------------


def test_bad_options():
    with pytest.raises(ConfigError, match=r"prior.channels \[8, 12\]: .* divisible by 8"):
        build(channels=[8, 12])
    with pytest.raises(ConfigError, match=r"prior.attention_levels: 2 is not one of the 2 levels"):
        build(attention_levels=[0, 2])
    with pytest.raises(ConfigError, match=r"prior.beta_range \[0.02, 0.01\]"):
        build(beta_range=[0.02, 0.01])
    with pytest.raises(ConfigError, match=r"prior: scheduler 'flow' does not fit .* 'epsilon'"):
        build(scheduler="flow")
    with pytest.raises(ConfigError, match=r"prior: num_steps 41 is outside 1\.\.40"):
        build(num_steps=41, scheduler="ddpm")
    with pytest.raises(ConfigError, match=r"prior\.prediction"):
        build(prediction="noise")
    spec = load_tokenizer("vqvae", image_size=16).token_spec
    with pytest.raises(ConfigError, match="has no latent_shape"):
        create_prior("ldm", spec, **LDM)


def test_bad_input():
    with pytest.raises(InputError, match="num_images -1 and batch_size 64 must be at least 1"):
        draw_images(build(), small_tokenizer("vqvae"), -1)
    prior = build(num_classes=3)
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\) are not \(B, 3, 4, 4\)"):
        prior(torch.zeros(2, 3, 4, 5), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"class 3 is outside 0\.\.2"):
        sample_latents(prior, [0], torch.tensor([3]))
    with pytest.raises(InputError, match="condition_dropout"):
        sample_latents(prior, [0])
    with pytest.raises(InputError, match="condition_dropout"):
        sample_latents(prior, [0], torch.tensor([1]), options=DiffusionOptions(guidance=2))
    with pytest.raises(InputError, match="needs labels to guide towards"):
        sample_latents(build(), [0], options=DiffusionOptions(guidance=2))
    for options, message in [
        (DiffusionOptions("flow"), "scheduler 'flow' does not fit .* take ddim or ddpm"),
        (DiffusionOptions("ddpm", 41), "num_steps 41 is outside 1..40"),
        (DiffusionOptions("ddim", 15), "does not divide the 40 steps of training; take e.g. 10"),
    ]:
        with pytest.raises(InputError, match=message):
            sample_latents(prior, [0], torch.tensor([1]), options=options)
    with pytest.raises(InputError, match="num_steps 0 must be at least 1"):
        DiffusionOptions(num_steps=0)
    with pytest.raises(InputError, match="guidance -1 must be at least 0"):
        DiffusionOptions(guidance=-1)
    with pytest.raises(InputError, match="image number -1"):
        sample_latents(build(), [-1])
    tokenizer = load_tokenizer("vqvae", image_size=16)
    with pytest.raises(InputError, match="an LDM draws latents"):
        draw_batch(build(), tokenizer, [0], options=SamplingOptions())


def test_bad_recipes(tmp_path, tokenizer_folder):
    with pytest.raises(ConfigError, match="ldm learns the latents of images, not their tokens"):
        train_prior(recipe_for(tokenizer_folder, tokens="somewhere"), tmp_path / "run")
    with pytest.raises(ConfigError, match="copies: 3 applies to tokens"):
        train_prior(recipe_for(tokenizer_folder, copies=3), tmp_path / "run")
