"""What is particular to product quantisation: groups that know nothing of one another."""

import itertools

import pytest
import torch

import spectok
from spectok.errors import ConfigError, InputError
from spectok.recipes.options import validate_options
from spectok.testing import QuantizerConformance
from spectok.testing.small import small_tokenizer
from spectok.training.recipe import load_tokenizer_recipe

SIZES = {"dim": 8, "num_tokens": 6, "codebook_size": 16}


def product(**options):
    torch.manual_seed(0)
    return spectok.create_quantizer("product", **(SIZES | options)).train()


def train(quantizer, steps=10):
    torch.manual_seed(1)
    for _ in range(steps):
        quantizer(torch.randn(16, quantizer.num_tokens, quantizer.dim))
        quantizer.after_step()
    return quantizer.eval()


@pytest.mark.parametrize("inner", ["vq", "voronoi", "cosine", "rq", "tree", "fsq", "product"])
def test_each_group_is_the_inner_quantizer_on_its_own_numbers(inner):
    quantizer = train(product(quantizer=inner))
    z = torch.randn(4, 6, 8)
    output, halves = quantizer(z), z.chunk(2, dim=-1)
    alone = [group(half) for group, half in zip(quantizer.groups, halves)]
    assert torch.equal(output.indices, torch.cat([o.indices for o in alone], dim=-1))
    assert torch.equal(output.z_q, torch.cat([o.z_q for o in alone], dim=-1))
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)
    assert len(quantizer.levels) == len(quantizer.code_tables) == output.indices.shape[-1]
    for name, value in output.losses.items():
        mean = torch.stack([o.losses[name] for o in alone]).mean()
        torch.testing.assert_close(value, mean)
    for number, one in enumerate(alone):
        for name, value in one.metrics.items():
            torch.testing.assert_close(output.metrics[f"group{number}_{name}"], value)


def test_the_groups_together_find_the_nearest_of_all_combinations():
    """The mechanism: K^G vectors are searched exactly at the cost of K G."""
    quantizer = product(codebook_size=4, num_groups=4, quantizer="vq")
    for group in quantizer.groups:
        torch.nn.init.normal_(group.codebook)
    combinations = torch.tensor(list(itertools.product(range(4), repeat=4)))  # (256, 4)
    vectors = quantizer.lookup(combinations.unsqueeze(1)).squeeze(1)  # (256, 8)
    z = torch.randn(3, 6, 8)
    nearest = torch.cdist(z.flatten(0, 1), vectors).argmin(-1)
    assert torch.equal(quantizer.encode(z).flatten(0, 1), combinations[nearest])


def test_one_group_is_the_inner_quantizer():
    alone, grouped = (
        train(spectok.create_quantizer("ema", **SIZES)),
        train(product(num_groups=1)),
    )
    grouped.groups[0].load_state_dict(alone.state_dict())
    z = torch.randn(4, 6, 8)
    assert torch.equal(grouped(z).indices, alone(z).indices)
    assert torch.equal(grouped(z).losses["commitment"], alone(z).losses["commitment"])


def test_two_small_codebooks_beat_one_large_one_at_equal_bits():
    """Independent halves: 2 x 16 codes stand for 256 vectors that one codebook cannot learn."""
    torch.manual_seed(2)
    values = torch.randn(2, 16, 4)

    def draw(size):  # each half is one of 16 points
        return torch.cat([v[torch.randint(16, (size, 6))] for v in values], dim=-1)

    errors = {}
    options = {"product": (16, {"quantizer": {"name": "ema", "decay": 0.9}}), "ema": (256, {})}
    for name, (codebook_size, rest) in options.items():
        quantizer = spectok.create_quantizer(
            name, **SIZES | {"codebook_size": codebook_size}, **rest
        )
        for _ in range(60):
            quantizer(draw(8))
            quantizer.after_step()
        z = draw(64)
        errors[name] = (quantizer.eval()(z).z_q - z).square().mean().item()
    assert errors["product"] < 0.8 * errors["ema"]


def test_edits_reach_every_group():
    quantizer = product(quantizer={"name": "ema", "revive_every": 1, "revive_below": 0.9})
    before = [group.codebook.clone() for group in quantizer.groups]
    quantizer(5 + torch.randn(16, 6, 8))
    assert all(group.pending_counts.any() for group in quantizer.groups)
    quantizer.skip_step()
    assert not any(group.pending_counts.any() for group in quantizer.groups)
    quantizer(5 + torch.randn(16, 6, 8))
    quantizer.after_step()
    for group, old in zip(quantizer.groups, before):
        assert (group.codebook - old).norm(dim=-1).min() > 1  # started on the data
        assert torch.equal(group.num_steps, torch.tensor(1))


def test_bits_and_usage_are_per_group():
    options = {"name": "product", "num_groups": 4}
    model = small_tokenizer("vqvae", quantizer=options)
    spec = model.token_spec
    assert (spec.num_levels, spec.num_tokens, spec.bits_per_image) == (4, 64, 16 * 4 * 5)
    output = model.train()(torch.rand(2, 1, 16, 16))
    usage = [output.metrics[f"group{g}_codebook_usage"] for g in range(4)]
    torch.testing.assert_close(output.metrics["codebook_usage"], torch.stack(usage).mean())


def test_global_tokens_keep_a_codebook_per_place_in_every_group():
    options = {"name": "product", "quantizer": "voronoi"}
    model = small_tokenizer("qgvae", quantizer=options).eval()
    levels = model.token_spec.levels
    assert [(v.codebook, v.num_codebooks) for v in levels] == [("position", 8)] * 2
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        indices = model.encode(images)
        assert torch.equal(model.decode(indices), model(images).reconstruction)


@pytest.mark.parametrize("tokenizer", ["vqvae", "qgvae"])
def test_it_trains_around_codes_of_every_kind_of_level(tokenizer):
    suite = QuantizerConformance()
    suite.tokenizers, suite.fit_steps, suite.fit_learning_rate = (tokenizer,), 10, 1e-2  # type: ignore[misc]
    for inner in ("voronoi", "rq", "tree"):
        suite.test_trains_inside_every_tokenizer({"name": "product", "quantizer": inner})


def test_the_inner_section_is_checked():
    with pytest.raises(InputError, match="num_groups 3 does not divide vectors of length 8"):
        product(num_groups=3)
    with pytest.raises(ConfigError, match="unknown key"):
        product(quantizer={"name": "ema", "decya": 0.9})
    cls = type(small_tokenizer("vqvae"))
    resolved = validate_options(cls, {"quantizer": "product"}, "tokenizer")["quantizer"]
    assert resolved["quantizer"]["name"] == "ema"  # and its options, so that they can be overridden
    assert resolved["quantizer"]["decay"] == 0.99


def test_recipes_have_the_bits_of_their_neighbours():
    for ours, theirs in [
        ("vqvae/product_cifar10", "vqvae/cifar10"),
        ("qgvae/product_cifar10", "qgvae/cifar10"),
    ]:
        specs = []
        for name in (ours, theirs):
            options = dict(load_tokenizer_recipe(name).tokenizer)
            with torch.device("meta"):
                specs.append(spectok.load_tokenizer(options.pop("name"), **options).token_spec)
        assert specs[0].bits_per_image == specs[1].bits_per_image
        assert specs[0].num_levels > 1
