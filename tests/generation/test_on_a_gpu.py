"""Priors and samplers on a GPU that is not there: nothing stays on the CPU, no step waits."""

from __future__ import annotations

import pytest
import torch

from spectok import list_priors
from spectok.errors import DataError, InputError
from spectok.testing.pretend import PretendDevice
from spectok_generation.conditions import TextFeatures
from spectok_generation.diffusion import LDM, DiffusionOptions, sample_latents
from spectok_generation.masked import MaskedOptions, MaskedPrior, sample_masked
from spectok_generation.priors import AutoregressivePrior, create_prior
from spectok_generation.sampling import SamplingOptions, sample_batch
from spectok_generation.training_set import check_classes

SMALL = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16},
    "pixelcnn": {"num_layers": 2, "width": 8, "first_kernel": 3, "head_width": 16},
    "cat": {"num_layers": 1, "num_heads": 2, "width": 16},
    "maskgit": {"num_layers": 1, "num_heads": 2, "width": 16},
    "ldm": {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 4},
}
TEXT = {"width": 12, "context_length": 4}
LATENTS = (4, 4, 4)
VARIANTS = [("cat", {"text_conditioning": kind}) for kind in ("pooled", "prefix")]
VARIANTS += [("maskgit", {"text": TEXT})]
VARIANTS += [("gpt", {"order": "random"}), ("cat", {"order": "random", "block": "released"})]
VARIANTS += [(name, {}) for name in sorted({*list_priors(), *SMALL})]


@pytest.fixture(params=VARIANTS, ids=str)
def prior(request, spec):
    """Return a small prior of each kind, conditioned on a class or on a text."""
    name, options = request.param
    reads_text = name == "cat" or "text" in options
    given = {"text": TEXT} if reads_text else {"num_classes": 3}
    record = {"latent_shape": list(LATENTS)} if name == "ldm" else None
    options = SMALL[name] | given | options | {"condition_dropout": 0.5}
    return create_prior(name, spec, tokenizer=record, **options)


def condition(prior, count):
    if prior.text_width:
        mask = torch.arange(3) < torch.tensor([[1], [3]])
        return TextFeatures(torch.randn(count, 3, prior.text_width), mask.repeat(count // 2, 1))
    return torch.arange(count) % prior.num_classes


def inputs(prior, count):
    if isinstance(prior, LDM):
        return torch.randn(count, *LATENTS)
    sizes = torch.tensor(prior.token_spec.vocab_sizes)
    return (torch.rand(count, len(sizes)) * sizes).long()


@pytest.mark.parametrize("low_precision", [False, True], ids=["fp32", "bf16"])
def test_a_step_of_a_prior_never_waits(prior, low_precision):
    batch, given = inputs(prior, 4), condition(prior, 4)
    with PretendDevice("cuda") as gpu:
        optimizer = torch.optim.AdamW(prior.to("cuda").train().parameters())
        batch, given = batch.to("cuda"), given.to("cuda")
        for step in (1, 2):
            gpu.events.clear()
            with torch.autocast("cuda", torch.bfloat16, enabled=low_precision):
                output = prior(batch, given)
            torch.stack([loss.float() for loss in output.losses.values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:  # constants are copied once
                continue
            assert not gpu.events, "\n".join(map(str, gpu.events))


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_samplers_keep_to_the_device(prior, kind):
    numbers, given = range(2), condition(prior, 2)
    torch.manual_seed(0)
    wanted = draw(prior, numbers, given)
    with PretendDevice(kind) as gpu:
        found = draw(prior.to(kind), numbers, given)
        reads = [event for event in gpu.events if event.kind == "read"]
        found = found.to("cpu")
    torch.testing.assert_close(found, wanted)
    places = prior.token_spec.num_tokens
    # MPS has no float64, so there tokens are drawn on the CPU.
    drawn_on_cpu = places if kind == "mps" and not isinstance(prior, LDM) else 0
    assert len(reads) <= 3 + drawn_on_cpu, "\n".join(map(str, reads))


def draw(prior, numbers, given):
    if isinstance(prior, AutoregressivePrior):
        options = SamplingOptions(top_p=0.9, top_k=3, guidance=2.0)
        return sample_batch(prior, numbers, given, options=options)
    if isinstance(prior, MaskedPrior):
        options = MaskedOptions(top_p=0.9, top_k=3, guidance=2.0, num_steps=3)
        return sample_masked(prior, numbers, given, options=options)
    options = DiffusionOptions(num_steps=2, guidance=2.0)
    return sample_latents(prior, numbers, given, options=options)


def test_classes_out_of_range_are_refused_wherever_they_can_be_seen(spec):
    prior = create_prior("gpt", spec, num_classes=3, **SMALL["gpt"])
    batch, wrong = inputs(prior, 2), torch.tensor([0, 3])
    with pytest.raises(InputError, match=r"class 3 is outside 0\.\.2"):
        prior.train()(batch, wrong)
    with PretendDevice("cuda"):
        prior.to("cuda")
        with pytest.raises(InputError, match=r"class 3 is outside 0\.\.2"):  # on the host: no wait
            prior.train()(batch.to("cuda"), wrong)
        with pytest.raises(InputError, match=r"class 3 is outside 0\.\.2"):
            prior.eval()(batch.to("cuda"), wrong.to("cuda"))
    with pytest.raises(DataError, match=r"class 3 of the data is outside 0\.\.2"):
        check_classes(wrong.numpy(), 3)
