"""What is particular to the adapted quantizers: the library's results, exactly and cheaply."""

import itertools
import math
import sys

import pytest
import torch
import vector_quantize_pytorch as library
from torch.nn.functional import normalize

import spectok
from spectok.errors import InputError, PluginError
from spectok.testing import QuantizerConformance
from spectok.testing.small import small_quantizer, small_tokenizer
from spectok_vqtorch.entropy import entropy_of_mean, entropy_per_vector
from spectok_vqtorch.scalars import default_levels

NAMES = ["fsq", "lfq", "bsq", "simvq", "residual_fsq", "residual_lfq", "residual_simvq"]


def make(name, **options):
    torch.manual_seed(0)
    base = {"dim": 6, "num_tokens": 16, "codebook_size": 64}
    return spectok.create_quantizer(name, **(base | options)).train()


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(8, 16, 6)


# -- the library's results -------------------------------------------------------------------------


def test_fsq_is_the_librarys(z):
    quantizer = make("fsq", levels=[7, 5, 4])
    theirs = library.FSQ([7, 5, 4], dim=6)
    theirs.load_state_dict(quantizer.grid.state_dict())
    vectors, indices = theirs(z)
    output = quantizer(z)
    assert torch.equal(output.indices.squeeze(-1), indices.long())
    assert torch.allclose(output.z_q, vectors, atol=1e-6)
    (wanted,) = torch.autograd.grad(vectors.sum(), theirs.project_in.weight)
    (ours,) = torch.autograd.grad(output.z_q.sum(), quantizer.grid.project_in.weight)
    assert torch.allclose(ours, wanted, atol=1e-4)


def test_residual_fsq_is_the_librarys(z):
    quantizer = make("residual_fsq", levels=[7, 5, 4], num_levels=3)
    theirs = library.ResidualFSQ(levels=[7, 5, 4], num_quantizers=3, dim=6)
    theirs.project_in.load_state_dict(quantizer.project_in.state_dict())
    theirs.project_out.load_state_dict(quantizer.project_out.state_dict())
    vectors, indices = theirs(z)
    output = quantizer(z)
    assert torch.equal(output.indices, indices.long())
    assert torch.allclose(output.z_q, vectors, atol=1e-5)


@pytest.mark.parametrize(("name", "spherical"), [("lfq", False), ("bsq", True)])
def test_lfq_and_bsq_are_the_librarys(z, name, spherical):
    quantizer = make(name, commitment_weight=0.5, entropy_weight=0.3, inverse_temperature=1.5)
    theirs = library.LFQ(dim=6, codebook_size=64, spherical=spherical)
    found, parts = theirs(z, inv_temperature=1.5, return_loss_breakdown=True)
    output = quantizer(z)
    assert torch.equal(output.indices.squeeze(-1), found.indices.long())
    assert torch.allclose(output.z_q, found.quantized, atol=1e-6)
    entropy = 0.3 * (parts.per_sample_entropy - parts.batch_entropy)
    assert output.losses["entropy"].item() == pytest.approx(entropy.item(), abs=1e-4)
    u = normalize(z, dim=-1) if spherical else z
    error = (u - found.quantized.detach()).square().mean()
    assert output.losses["commitment"].item() == pytest.approx(0.5 * error.item(), rel=1e-5)


def test_residual_lfq_is_the_librarys(z):
    quantizer = make("residual_lfq", num_levels=3)
    theirs = library.ResidualLFQ(dim=6, codebook_size=64, num_quantizers=3).eval()
    vectors, indices, _ = theirs(z)
    assert torch.equal(quantizer(z).indices, indices.long())
    assert torch.allclose(quantizer(z).z_q, vectors, atol=1e-6)


@pytest.mark.parametrize("rotate", [True, False])
def test_simvq_is_the_librarys(z, rotate):
    quantizer = make("simvq", rotate=rotate)
    theirs = library.SimVQ(dim=6, codebook_size=64, rotation_trick=rotate)
    theirs.load_state_dict(quantizer.maps[0].state_dict())
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    output, (vectors, indices, loss) = quantizer(one), theirs(other)
    assert torch.equal(output.indices.squeeze(-1), indices)
    assert torch.allclose(output.z_q, vectors, atol=1e-6)
    assert sum(output.losses.values()).item() == pytest.approx(loss.item(), rel=1e-5)
    weights = torch.randn_like(z)
    (ours,) = torch.autograd.grad((output.z_q * weights).sum(), one)
    (wanted,) = torch.autograd.grad((vectors * weights).sum(), other)
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert torch.equal(ours, weights) is not rotate  # straight through, or turned on the way


# -- the contract ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_lookup_is_exact_while_training(z, name):
    quantizer = make(name)
    output = quantizer(3 * z)
    assert torch.equal(quantizer.lookup(output.indices), output.z_q)


@pytest.mark.parametrize("name", ["residual_fsq", "residual_lfq", "residual_simvq"])
def test_each_level_comes_closer(z, name):
    quantizer = make(name, num_levels=4, codebook_size=64)
    indices = quantizer.encode(z)
    codes = [quantizer.codes(indices[..., : k + 1]) for k in range(4)]
    target = z
    if name == "residual_fsq":  # it approaches what tanh made of the vectors
        limit = 1 + 1 / (quantizer.fineness(1) - 1)
        target = (quantizer.project_in(z) / limit).tanh() * limit
    errors = [(target - code).square().mean().item() for code in codes]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("name", ["residual_lfq", "residual_simvq", "lfq", "simvq"])
def test_memory_is_bounded_with_more_codes(name):
    QuantizerConformance().test_memory_is_bounded(lambda: small_quantizer(name, codebook_size=256))


@pytest.mark.parametrize("name", ["fsq", "bsq", "residual_fsq"])
def test_codes_keep_their_precision_when_loaded_in_another(name, tmp_path):
    options = {} if name == "bsq" else {"levels": [7, 6]}
    model = small_tokenizer("vqvae", quantizer={"name": name, **options}).eval()
    model.save_pretrained(tmp_path)
    loaded = spectok.load_tokenizer(tmp_path, torch_dtype=torch.bfloat16)
    indices = model.quantizer.encode(torch.randn(2, 16, 8))
    assert torch.equal(loaded.quantizer.lookup(indices), model.quantizer.lookup(indices))


def test_each_level_has_frequencies_of_its_own(z):
    quantizer = make("residual_simvq", num_levels=2, codebook_size=32)
    quantizer(torch.randn(z.shape))
    quantizer.skip_step()  # leaves no trace
    expected = torch.full((2, 32), 1 / 32)
    for batch in (z, 2 * z):
        indices = quantizer(batch).indices  # (B, N, L)
        quantizer.after_step()
        counts = [torch.bincount(level.flatten(), minlength=32) for level in indices.unbind(-1)]
        expected = 0.99 * expected + 0.01 * torch.stack(counts) / 128
        assert torch.allclose(quantizer.frequency, expected, atol=1e-6)
    assert int(quantizer.num_steps) == 2


def test_without_the_library_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    assert set(NAMES) <= set(spectok.list_quantizers())
    for name in NAMES:
        with pytest.raises(PluginError, match=r"pip install 'spectok\[vqtorch\]'"):
            make(name)


# -- grids -----------------------------------------------------------------------------------------


def test_fsq_codes_are_all_points_of_a_grid():
    quantizer = make("fsq", dim=3, levels=[5, 4, 3])
    codes = quantizer.lookup(torch.arange(60).view(1, 60, 1))[0]  # no maps: as many as dimensions
    assert len(codes.unique(dim=0)) == 60
    for dimension, count in enumerate([5, 4, 3]):
        values = codes[:, dimension].unique()
        assert len(values) == count
        assert torch.allclose(values.diff(), torch.tensor(1 / (count // 2)))


def test_bits_of_a_vocabulary_that_is_no_power_of_two():
    model = small_tokenizer("vqvae", quantizer={"name": "fsq", "levels": [8, 5, 5, 5]})
    assert model.token_spec.levels[0].vocab_size == 1000
    assert model.token_spec.bits_per_image == pytest.approx(16 * math.log2(1000))
    residual = {"name": "residual_fsq", "levels": [5, 3], "num_levels": 3}
    model = small_tokenizer("vqvae", quantizer=residual)
    assert model.token_spec.bits_per_image == pytest.approx(16 * 3 * math.log2(15))


@pytest.mark.parametrize(
    ("size", "levels"), [(512, (8, 8, 8)), (1000, (8, 5, 5, 5)), (16, (4, 4)), (7, (7,))]
)
def test_default_levels_multiply_to_the_codebook_size(size, levels):
    assert default_levels(size) == levels
    assert math.prod(make("fsq", codebook_size=size).grid._levels.tolist()) == size


@pytest.mark.parametrize(
    ("name", "size"), [("fsq", 11), ("residual_fsq", 2), ("lfq", 100), ("bsq", 1)]
)
def test_sizes_that_do_not_fit_are_refused(name, size):
    with pytest.raises(InputError, match=f"codebook_size {size} is "):
        make(name, codebook_size=size)


# -- entropy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", [1, 2, 5])
def test_entropies_equal_those_over_all_codes(num_bits):
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, num_bits, dtype=torch.float64)
    codes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_bits))).double()
    chosen = torch.where(codes == 1, logits.sigmoid()[:, None], (-logits).sigmoid()[:, None])
    q = chosen.prod(-1)  # (vectors, codes)
    assert entropy_per_vector(logits).item() == pytest.approx(-(q * q.log()).sum(-1).mean().item())
    mean = q.mean(0)
    assert entropy_of_mean(logits).item() == pytest.approx(-(mean * mean.log()).sum().item())


def test_the_entropy_term_spreads_vectors_over_the_codes():
    torch.manual_seed(0)
    quantizer = make("lfq", dim=3, codebook_size=8, commitment_weight=0.0, inverse_temperature=1.0)
    z = torch.nn.Parameter(1 + 0.1 * torch.randn(8, 16, 3))  # all in one corner
    assert len(quantizer(z).indices.unique()) == 1
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(z).losses["entropy"].backward()
        optimizer.step()
    assert len(quantizer(z).indices.unique()) == 8
