"""Priors trained with FSDP: the same losses, whole files, exact resuming, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from spectok import load_tokenizer
from spectok.errors import SpectokError, TrainingError
from spectok.training import TrainConfig
from spectok.training.launch import accelerated
from spectok.training.log import read_log
from spectok.training.sharding import Shards, as_plain, is_sharding, refuse_for
from spectok_generation import load_prior, sample_tokens
from spectok_generation.drawing import choose_labels
from spectok_generation.prior_recipe import PriorRecipe
from spectok_generation.training import train_prior

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RELATIVE = 1e-5  # sums in float32, in another order
GPT = {"name": "gpt", "num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0}
PRIORS = {
    "gpt": GPT | {"condition_dropout": 0.3},
    "gpt in random orders": GPT | {"order": "random"},
    "pixelcnn": {"name": "pixelcnn", "num_layers": 2, "width": 8, "first_kernel": 3},
    "maskgit": GPT | {"name": "maskgit", "condition_dropout": 0.3},
    "ldm": {"name": "ldm", "channels": [8, 16], "layers": 1, "num_timesteps": 20},
}
TRAIN = {
    "steps": 6,
    "gradient_accumulation": 2,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "ema_decay": 0.9,
    "log_every": 1,
    "save_every": 3,
    "sample_every": 6,
}


@pytest.fixture
def fsdp(monkeypatch):
    """Set what ``accelerate launch --use_fsdp --fsdp_version 2`` would."""

    def switch_on(**variables):
        for name, value in {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            **variables,
        }.items():
            monkeypatch.setenv(name, value)

    return switch_on


def recipe_for(tokenizer, prior, **train):
    sections = {"data": {"name": "digits", "limit": 50}, "train": TRAIN | train}
    return PriorRecipe.model_validate({"prior": prior, "tokenizer": str(tokenizer), **sections})


def train_rank(recipe, output, resume=False):
    """Train in one of two processes, and check that it held a part of the weights only."""
    parts = []
    take = Shards.take

    def watch(shards):
        take(shards)
        parts.extend(shards.parameters.values())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "take", watch)
        result = train_prior(recipe, output, resume=resume)
    assert parts
    assert all(isinstance(part, DTensor) for part in parts)
    held = sum(part.to_local().numel() for part in parts)
    assert held < 0.75 * sum(part.numel() for part in parts)
    assert not any(isinstance(part, DTensor) for part in result.model.parameters())


def loss_bits(output):
    return [(record["step"], record["loss"].hex()) for record in read_log(output / "log.jsonl")]


def curve(output, name="loss"):
    return [record[name] for record in read_log(output / "log.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRIORS)
def test_two_shards_train_as_one_process(tokenizer_folder, tmp_path, fork_ranks, fsdp, kind):
    one, two = tmp_path / "one", tmp_path / "two"
    plain = train_prior(recipe_for(tokenizer_folder, PRIORS[kind], batch_size=8), one)
    fsdp()
    recipe = recipe_for(tokenizer_folder, PRIORS[kind], batch_size=4)
    assert fork_ranks(train_rank, recipe, two) == [0, 0]

    assert curve(two) == pytest.approx(curve(one), rel=RELATIVE)
    assert curve(two, "grad_norm") == pytest.approx(curve(one, "grad_norm"), rel=1e-4)
    expected = {name: tensor for name, tensor in plain.model.state_dict().items()}
    found = load_prior(two).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3, msg=name)
    assert (two / "samples" / "step-00000006.png").stat().st_size > 0


@pytest.mark.slow
def test_a_sharded_run_resumes_bitwise_and_in_one_process(
    tokenizer_folder, tmp_path, fork_ranks, fsdp, monkeypatch
):
    recipes = {
        steps: recipe_for(tokenizer_folder, GPT, batch_size=4, steps=steps) for steps in (3, 6)
    }
    with monkeypatch.context():
        fsdp()
        runs = [("a", 6, False), ("b", 3, False), ("b", 6, True), ("c", 3, False)]
        for folder, steps, resume in runs:
            assert fork_ranks(train_rank, recipes[steps], tmp_path / folder, resume) == [0, 0]
    assert loss_bits(tmp_path / "b") == loss_bits(tmp_path / "a")
    whole = [
        load_file(tmp_path / f / "model" / "diffusion_pytorch_model.safetensors") for f in "ab"
    ]
    assert all(torch.equal(whole[0][name], whole[1][name]) for name in whole[0])

    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    train_prior(recipe_for(tokenizer_folder, GPT, batch_size=8), tmp_path / "c", resume=True)
    assert curve(tmp_path / "c") == pytest.approx(curve(tmp_path / "a"), rel=RELATIVE)


@pytest.mark.slow
def test_accelerate_launch_with_the_config_of_the_page(tokenizer_folder, tmp_path):
    output = tmp_path / "run"
    config = ROOT / "configs" / "accelerate" / "fsdp_cpu2.yaml"
    launch = [str(BIN / "accelerate"), "launch", "--config_file", str(config)]
    sizes = [f"tokenizer={tokenizer_folder}", "train.batch_size=8", "train.log_every=1"]
    script = [str(ROOT / "generation" / "train_prior.py"), "--config", "smoke/prior_gpt"]
    subprocess.run([*launch, *script, "--output", str(output), *sizes], check=True)
    one = train_prior(
        recipe_for(
            tokenizer_folder,
            {"name": "gpt", "size": "gpt-nano", "dropout": 0.0, "condition_dropout": 0.1},
            batch_size=16,
            steps=12,
            gradient_accumulation=1,
            learning_rate=1e-3,
            max_grad_norm=None,
            ema_decay=None,
        ).model_copy(update={"data": _digits(96)}),
        tmp_path / "one",
    )
    assert curve(output) == pytest.approx([r["loss"] for r in one.history], rel=RELATIVE)
    prior = load_prior(output)
    labels = choose_labels(prior, 4)
    assert sample_tokens(prior, 4, labels, seed=0).shape == (4, prior.token_spec.num_tokens)


def _digits(limit):
    from spectok.data import DataConfig

    return DataConfig(name="digits", limit=limit)


@pytest.mark.parametrize(
    ("variables", "train", "expected"),
    [
        ({"FSDP_VERSION": "1"}, {}, "--fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "--fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "--fsdp_activation_checkpointing"),
        ({"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NONSENSE"}, {}, "NONSENSE"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line(tmp_path, fsdp, variables, train, expected):
    fsdp(**variables)
    context = accelerated(TrainConfig(**train), tmp_path)
    with pytest.raises(TrainingError, match=expected) as caught, context:
        pass
    assert "\n" not in str(caught.value)


def test_tokenizers_are_refused_with_the_reason(tmp_path, fsdp, spectok):
    refuse_for("nothing that was asked for")
    fsdp()
    status, _, err = spectok("train", "smoke/vqvae", "--output", str(tmp_path / "run"))
    assert status == 2
    assert "FSDP does not shard tokenizers" in err
    assert "codebooks" in err
    assert not (tmp_path / "run").exists()


def test_one_process_is_not_sharded(tokenizer_folder, tmp_path, fsdp):
    fsdp()
    result = train_prior(recipe_for(tokenizer_folder, GPT, batch_size=4, steps=1), tmp_path / "run")
    assert result.step == 1
    assert not is_sharding(Accelerator(cpu=True))


def test_plain_tensors_stay_as_they_are():
    tensor = torch.ones(3)
    assert as_plain(tensor) is tensor


def test_a_prior_whose_tokenizer_is_a_recipe_is_refused_too(tmp_path, fsdp):
    fsdp()
    load_tokenizer("vqvae", image_size=16)  # building one is no training
    recipe = PriorRecipe.model_validate(
        {"prior": GPT, "tokenizer": "smoke/vqvae", "data": {"name": "digits", "limit": 50}}
    )
    with pytest.raises(SpectokError, match="train a tokenizer before its prior"):
        train_prior(recipe, tmp_path / "run")
