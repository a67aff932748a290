"""What is particular to FQ-VAE: frequency maps, codes by usage and correlation, the graph gate."""

import itertools
import json
import math

import pytest
import torch
from PIL import Image

import spectok
from spectok.cli import main
from spectok.data import DataConfig, build_dataset
from spectok.errors import ConfigError, InputError
from spectok.metrics import codebook_statistics, count_codes
from spectok.training.recipe import load_tokenizer_recipe
from spectok_fqvae.analysis import CodeStudy, study_codes
from spectok_fqvae.filters import independent_bins, start_filters
from spectok_fqvae.graph import GraphGate
from spectok_fqvae.pictures import draw_codes
from spectok_fqvae.quantizer import correlations, yields
from spectok_fqvae.token_space import FrequencyTokens, map_sizes

GRID = {"downsample_factor": 4, "num_tokens": 16, "codebook_dim": 8}


def tiny(**options):
    base = {
        "image_size": 16,
        "in_channels": 1,
        "num_tokens": 8,
        "codebook_size": 8,
        "codebook_dim": 4,
        "channels": 8,
        "max_channels": 8,
        "residual_channels": 4,
    }
    return spectok.load_tokenizer("fqvae", **(base | options))


def literal(**options):
    paper = {"codebook_dim": None, "filter_init": "noise", "network": "conv"}
    shared = {"quantizer": {"name": "cvq_pearson", "num_codebooks": 1}}
    return tiny(**(paper | shared | options))


def space(size=16, channels=2, tokens=8, dim=4, heads=None, init="bins"):
    model = tiny(
        image_size=size,
        latent_channels=channels,
        num_tokens=tokens,
        codebook_dim=dim,
        num_heads=heads,
        filter_init=init,
        graph_gate=None,
    )
    return model.token_space


def decided(token_space):
    """Give the softmax of Eq. 4 something to say."""
    torch.nn.init.normal_(token_space.weights.logits.weight)
    return token_space


def quantizer(name="cvq_pearson", **options):
    base = {"dim": 4, "num_tokens": 1, "codebook_size": 8}
    return spectok.create_quantizer(name, **(base | options)).train()


def step(quantizer, z):
    quantizer(z)
    quantizer.after_step()


# -- transform and filters (Eq. 2-5) ---------------------------------------------------------------


@pytest.mark.parametrize("size", [28, 32, 64])
def test_transform_there_and_back(size):
    token_space = space(size, channels=2, tokens=2, dim=None, init="noise")
    with torch.no_grad():
        token_space.bases.zero_()[..., 0] = 1
    z = torch.randn(2, 2, size, size)
    vectors = token_space.to_vectors(z)
    assert vectors.shape == (2, 2, 2 * size * (size // 2 + 1))
    assert torch.allclose(token_space.to_latents(vectors), z, atol=1e-5)


def test_without_quantiser_and_gate_it_is_the_summed_dynamic_filter():
    token_space, z = decided(space(dim=None, init="noise")), torch.randn(3, 2, 16, 16)
    bases = torch.view_as_complex(token_space.bases.detach())
    weights = token_space.weights(z) / token_space.num_filters  # the softmax of Eq. 4
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2))
    assert weights.std() > 0.01
    summed = torch.einsum("bdn,nhv->bdhv", weights.to(bases.dtype), bases)  # Eq. 5
    filtered = torch.fft.irfft2(summed * torch.fft.rfft2(z, norm="ortho"), norm="ortho")  # Eq. 3
    assert torch.allclose(token_space.to_latents(token_space.to_vectors(z)), filtered, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_projected_tokens_are_projections_of_filtered_maps(heads):
    token_space, z = decided(space(heads=heads, init="phase")), torch.randn(3, 2, 16, 16)
    maps = torch.fft.rfft2(z, norm="ortho").unsqueeze(2) * token_space.filters  # (B, D, N, h, v)
    maps = (maps * token_space.weights(z)[..., None, None]).flatten(1, 2)
    rows = torch.view_as_complex(token_space.analysis.detach()).repeat_interleave(8 // heads, 0)
    products = torch.einsum("buhv,ukhv->buk", maps, rows.conj()).real
    assert torch.allclose(token_space.to_vectors(z), products, atol=1e-4)


def test_maps_return_into_the_band_of_their_filter():
    token_space, z_q = space(heads=2, init="phase"), torch.randn(3, 8, 4)
    spectra = torch.view_as_complex(token_space.synthesis.detach()).repeat_interleave(4, 0)
    maps = torch.einsum("buk,ukhv->buhv", z_q.to(spectra.dtype), spectra).unflatten(1, (2, 4))
    combined = (maps * token_space.filters.conj()).mean(2)
    latents = torch.fft.irfft2(combined, norm="ortho")
    assert torch.allclose(token_space.to_latents(z_q), latents, atol=1e-4)


def test_tokens_are_channels_times_filters_in_that_order():
    token_space = space(channels=2, tokens=8)
    silent = torch.randn(1, 2, 16, 16)
    silent[:, 1] = 0
    vectors = token_space.to_vectors(silent)
    assert vectors.shape[1] == 8
    assert (vectors[:, :4].abs().sum(-1) > 0).all()
    assert (vectors[:, 4:] == 0).all()


# -- one part at a time ----------------------------------------------------------------------------


def control(**options):
    """A model with projected maps, and what its token space returns on some latents."""
    model = tiny(latent_channels=2, num_heads=2, filter_init="phase", graph_gate=None, **options)
    return model, model.token_space


@pytest.mark.parametrize("size", [6, 7, 16])
def test_pixels_in_place_of_the_spectrum_return_as_they_were(size):
    token_space = FrequencyTokens(
        *(2, 2),
        height=size,
        width=size,
        dim=None,
        num_heads=2,
        filter_init="noise",
        gate=None,
        transform="linear",
    )
    with torch.no_grad():
        token_space.bases.zero_()[..., 0] = 1
    z = torch.randn(3, 2, size, size)
    assert torch.equal(token_space.to_latents(token_space.to_vectors(z)), z)


def test_the_linear_map_has_as_many_numbers_and_sees_one_pixel_where_it_reads_one():
    (with_fft, spectral), (without, spatial) = control(), control(transform="linear")
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (with_fft, without)]
    assert shapes[0] == shapes[1]
    impulse = torch.zeros(1, 2, 16, 16)
    impulse[0, 0, 5, 8] = 1
    with torch.no_grad():
        for token_space in (spectral, spatial):
            token_space.analysis.zero_()[:, :, 5, 4] = 1  # one bin; as pixels, columns 8 and 9
        rest = torch.ones_like(impulse) - impulse
        rest[0, 0, 5, 9] = 0
        assert (spatial.to_vectors(impulse)[:, :4] != 0).all()
        assert (spatial.to_vectors(rest)[:, :4] == 0).all()
        assert (spectral.to_vectors(rest)[:, :4] != 0).all()


@pytest.mark.parametrize("init", ["bins", "shifts"])
def test_filters_of_frequencies_need_a_spectrum(init):
    with pytest.raises(InputError, match=f"'{init}' orders frequencies.*choose 'phase'"):
        tiny(transform="linear", filter_init=init)


def test_pixels_are_not_counted_as_bins():
    with pytest.raises(InputError, match="parseval_weights counts the bins of a spectrum"):
        literal(transform="linear", parseval_weights=True)


def test_without_dynamic_weights_the_map_is_linear_and_with_them_it_is_not():
    for dynamic in (True, False):
        _, token_space = control(dynamic_weights=dynamic)
        if dynamic:
            decided(token_space)
        one, two = torch.randn(2, 3, 2, 16, 16)
        both = token_space.to_vectors(one + two)
        parts = token_space.to_vectors(one) + token_space.to_vectors(two)
        assert torch.allclose(both, parts, atol=1e-4) is not dynamic


def test_weights_start_at_one_so_that_leaving_them_out_changes_nothing_at_first():
    with_weights, without = tiny(), tiny(dynamic_weights=False)
    without.load_state_dict(with_weights.state_dict(), strict=False)
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    assert torch.allclose(
        with_weights.eval()(images).reconstruction, without.eval()(images).reconstruction, atol=1e-5
    )


def test_filters_that_are_not_learned_stay_and_are_saved(tmp_path):
    model = tiny(learned_filters=False)
    before = model.token_space.bases.clone()
    train(model, steps=3)
    assert torch.equal(model.token_space.bases, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(spectok.load_tokenizer(tmp_path).token_space.bases, before)
    learned = tiny()
    before = learned.token_space.bases.detach().clone()
    train(learned, steps=3)
    assert not torch.equal(learned.token_space.bases, before)


CONTROLS = {
    "transform": "linear",
    "dynamic_weights": False,
    "learned_filters": False,
}


@pytest.mark.parametrize("option", CONTROLS)
def test_every_control_trains_and_decodes_from_its_tokens_alone(option):
    torch.manual_seed(0)
    model = tiny(filter_init="phase", **{option: CONTROLS[option]})
    errors = train(model, steps=12)
    assert errors[-1] < errors[0]
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    model.eval()
    assert torch.equal(model.decode(model.encode(images)), model(images).reconstruction)


def test_a_model_saved_before_the_controls_loads_as_it_was(tmp_path):
    model, images = tiny(), torch.rand(2, 1, 16, 16) * 2 - 1
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in saved.items() if k not in CONTROLS}))
    loaded = spectok.load_tokenizer(tmp_path)
    assert torch.equal(loaded.encode(images), model.eval().encode(images))


@pytest.mark.parametrize(("init", "dim"), [("bins", 10), ("shifts", 8)])
def test_a_complete_start_loses_nothing(init, dim):
    """All 64 numbers of an 8x8 channel fit 8 filters of 8 numbers; bins waste a few on zeros."""
    token_space, z = space(8, channels=2, tokens=16, dim=dim, init=init), torch.randn(2, 2, 8, 8)
    assert torch.allclose(token_space.to_latents(token_space.to_vectors(z)), z, atol=1e-5)


def test_bins_are_dealt_out_once_each():
    start = start_filters("bins", 8, 16, 16, 34)
    assert (start.bases.abs().sum(0) <= 1).all()
    order, mirrored = independent_bins(16, 16)
    assert start.bases.abs().sum() == len(order) == 16 * 16 / 2 + 2  # four bins are real
    assert mirrored.sum() == 2 * 7


def test_a_short_vector_keeps_the_low_frequencies():
    token_space = space(16, channels=1, tokens=8, dim=4)
    wave = torch.cos(2 * math.pi * torch.arange(16) / 16).expand(1, 1, 16, 16)
    fine = torch.cos(2 * math.pi * 7 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    assert torch.allclose(token_space.to_latents(token_space.to_vectors(wave)), wave, atol=1e-5)
    assert token_space.to_vectors(fine).abs().max() < 1e-4


def test_autocast_leaves_the_transform_in_float32():
    token_space, z = space(), torch.randn(2, 2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = token_space.to_vectors(z)
        latents = token_space.to_latents(vectors)
    assert torch.equal(vectors, token_space.to_vectors(z))
    assert torch.equal(latents, token_space.to_latents(vectors))


def whole_maps(size, *, weighted):
    model = literal(
        image_size=size, latent_channels=2, num_tokens=2, graph_gate=None, parseval_weights=weighted
    )
    with torch.no_grad():  # one filter per channel, which lets everything through
        torch.view_as_complex(model.token_space.bases).fill_(1)
    return model.token_space


@pytest.mark.parametrize("size", [15, 16, 28])
def test_parseval_weights_make_distances_those_of_images(size):
    one, two = torch.randn(2, 3, 2, size, size, generator=torch.Generator().manual_seed(1))
    of_images = (one - two).square().sum((2, 3))
    plain, weighted = (whole_maps(size, weighted=weighted) for weighted in (False, True))
    apart = [
        (space.to_vectors(one) - space.to_vectors(two)).square().sum(-1)
        for space in (plain, weighted)
    ]
    assert torch.allclose(apart[1], of_images, rtol=1e-4)
    assert (apart[0] < 0.7 * of_images).all()  # an interior column counts once for its two
    assert torch.allclose(weighted.to_latents(weighted.to_vectors(one)), one, atol=1e-5)


def test_parseval_weights_choose_the_code_that_is_nearest_as_an_image():
    """Of two waves the image has the second more, but its interior column is stored once."""
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16)
    waves = torch.stack([wave[:, None].expand(16, 16), 1.2 * wave.expand(16, 16)])[:, None]
    assert (waves[0] - waves.sum(0)).square().sum() > (waves[1] - waves.sum(0)).square().sum()
    for weighted, nearest in ((False, 0), (True, 1)):
        model = literal(latent_channels=1, num_tokens=1, parseval_weights=weighted)
        with torch.no_grad():
            torch.view_as_complex(model.token_space.bases).fill_(1)
            model.quantizer.codebook.fill_(100)
            model.quantizer.codebook[0, :2] = model.token_space.to_vectors(waves)[:, 0]
        z = model.token_space.to_vectors(waves.sum(0, keepdim=True))
        assert model.quantizer.encode(z).item() == nearest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_dim": 4}, "for whole maps, and codebook_dim 4 projects"),
        (GRID | {"extractor": "convolution"}, "extractor 'convolution' has none"),
    ],
)
def test_parseval_weights_are_for_whole_maps(options, message):
    with pytest.raises(InputError, match=message):
        tiny(parseval_weights=True, **options)


# -- codebook (Eq. 6-10) ---------------------------------------------------------------------------


def decay(rule, usage, correlation):
    """Return alpha of a code that is less used than the one it correlates with."""
    angle = math.acos(correlation)
    plane = torch.tensor([[1.0, 0], [math.cos(angle), math.sin(angle)]])
    centred = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]]) / math.sqrt(2)  # zero-mean axes
    q = quantizer(codebook_size=2, decay_rule=rule)
    with torch.no_grad():
        q.codebook.copy_(plane @ centred)
        q.average_usage.copy_(torch.tensor([[0.9, usage]]))
    return torch.exp(-q.resistance() - 1e-3)[0, 1].item()


def test_decay_equals_cvq_without_correlation_and_grows_with_it():
    for usage in (0.0, 1e-5, 1e-4, 1e-3, 0.5):
        alphas = [decay("text", usage, delta) for delta in (0, 0.5, 0.9, 0.99, 0.9999)]
        assert alphas[0] == pytest.approx(decay("cvq", usage, 0.9), rel=1e-3)
        assert all(0 <= low <= high <= 1 for low, high in itertools.pairwise(alphas))
    assert decay("text", 1e-3, 0.99) > 2 * decay("text", 1e-3, 0.5)


def test_decay_falls_with_usage_from_almost_one():
    for rule in ("text", "printed", "cvq"):
        alphas = [decay(rule, usage, 0.5) for usage in (0, 1e-6, 1e-5, 1e-4, 1e-3)]
        assert alphas[0] == pytest.approx(math.exp(-1e-3))
        assert all(high > low for high, low in itertools.pairwise(alphas))


def test_printed_formula_does_the_opposite_of_the_text():
    """It moves used codes that resemble nothing, and keeps those that repeat another."""
    assert decay("printed", 0.5, 0) > 0.99
    assert decay("printed", 0.5, 0.9) < 1e-6
    assert decay("text", 0.5, 0) < 1e-6


def test_correlations_are_pearsons():
    codes = torch.randn(3, 6, 5)
    delta, partner = correlations(codes)
    for group in range(3):
        matrix = torch.corrcoef(codes[group]).fill_diagonal_(-2)
        assert torch.allclose(delta[group], matrix.amax(1).clamp(0, 1), atol=1e-5)
        assert torch.equal(partner[group], matrix.argmax(1))


def separate(rule):
    """Return how far apart two equal, much used codes are after ten steps on the data around."""
    q = quantizer(decay_rule=rule, codebook_size=4)
    with torch.no_grad():
        q.codebook[0] = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 0, 5, 0]])
        q.average_usage.fill_(0.25)
    for _ in range(10):
        step(q, q.codebook[0, torch.randint(4, (64,))].unsqueeze(1) + 0.3 * torch.randn(64, 1, 4))
    return (q.codebook[0, 0] - q.codebook[0, 1]).norm().item()


def test_two_equal_codes_separate_and_cvq_leaves_them():
    assert separate("text") > 0.05
    assert separate("cvq") == 0


def test_only_the_less_used_of_two_equal_codes_moves():
    q = quantizer(codebook_size=3)
    with torch.no_grad():
        q.codebook[0] = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 5.0, 0, 0]])
        q.average_usage.copy_(torch.tensor([[0.2, 0.5, 0.3]]))
    resistance = q.resistance()[0]
    assert resistance[0] < 1e-3
    assert (resistance[1:] > 100).all()


def test_of_two_equally_used_codes_the_one_of_larger_index_moves():
    usage, partner = torch.tensor([[0.3, 0.3, 0.1, 0.4]]), torch.tensor([[1, 0, 3, 2]])
    assert yields(usage, partner).tolist() == [[False, True, True, False]]


def test_moving_a_code_away_clears_its_moments_and_no_others():
    q = quantizer("cvq", codebook_size=2)
    with torch.no_grad():
        q.codebook[0] = torch.tensor([[1.0, 1, 1, 1], [90, 90, 90, 90]])
    optimizer = torch.optim.Adam(q.parameters())
    output = q(torch.ones(8, 1, 4) + 0.1)
    torch.stack(list(output.losses.values())).sum().backward()
    optimizer.step()
    moments = optimizer.state[q.codebook]["exp_avg"].fill_(1.0)
    q.after_step([optimizer])
    assert moments[0].tolist() == [[1] * 4, [0] * 4]  # the first code is chosen and stays


def test_closest_anchor_is_the_nearest_vector_of_all_micro_batches():
    q, z = quantizer("cvq"), torch.randn(40, 1, 4)
    codes = q.codebook.detach().clone()[0]
    for part in z.split(10):
        q(part)
    anchors = q.draw_anchors()[0]
    assert torch.equal(anchors, z[torch.cdist(codes, z[:, 0]).argmin(1), 0])


@pytest.mark.parametrize("anchor", ["random", "probrandom"])
def test_drawn_anchors_are_vectors_of_the_batch(anchor):
    q, z = quantizer("cvq", anchor=anchor, num_tokens=4, num_codebooks=2), torch.randn(40, 4, 4)
    q(z)
    anchors = q.draw_anchors()
    for group, positions in enumerate((z[:, :2], z[:, 2:])):
        same = (anchors[group].unsqueeze(1) == positions.flatten(0, 1)).all(-1)  # (K, P)
        assert same.any(1).all()


def test_probrandom_prefers_what_is_near():
    q = quantizer("cvq", anchor="probrandom", codebook_size=64)
    with torch.no_grad():
        q.codebook.fill_(3)
    near = torch.rand(128, 1, 1) < 0.5
    q(torch.where(near, 3.0, -3.0).expand(128, 1, 4))
    assert (q.draw_anchors() > 0).all()


@pytest.mark.parametrize("anchor", ["closest", "random", "probrandom"])
def test_codes_spread_over_data_that_is_elsewhere(anchor):
    q, z = quantizer("cvq", anchor=anchor, codebook_size=16), 5 + torch.randn(256, 1, 4)
    for _ in range(12):
        step(q, z[torch.randint(256, (64,))])
    assert len(q.encode(z).unique()) > 8  # without anchors, the one code nearest to the data


def test_usage_counts_all_vectors_of_a_codebook():
    """Eq. 8 divides by the vectors of the batch, so that the usage of a codebook sums to one."""
    q = quantizer("cvq", num_tokens=4, num_codebooks=2, usage_decay=0.5)
    step(q, torch.randn(16, 4, 4))
    assert torch.allclose(q.average_usage.sum(1), torch.tensor(0.5))


# -- graph module (Eq. 12) -------------------------------------------------------------------------


def test_gate_is_equation_12():
    gate, energy = GraphGate(5, "sigmoid"), torch.rand(3, 5)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    wanted = []
    for f in energy:
        nodes = gate.embed.weight @ f
        a, b = torch.eye(5), torch.diag(torch.softmax(gate.node_tap * nodes, 0))
        mixed = nodes @ (a @ b + gate.adjacency)
        wanted.append(torch.sigmoid(gate.expand.weight @ torch.relu(gate.graph_tap * mixed)))
    assert torch.allclose(gate(energy), torch.stack(wanted), atol=1e-5)


def test_graph_module_starts_as_a_no_op():
    torch.manual_seed(0)
    gated = tiny().eval()
    torch.manual_seed(0)
    indices = gated.encode(torch.rand(2, 1, 16, 16))
    latents = gated.token_space.to_latents(gated.embed(indices))
    gated.token_space.gate = None
    assert torch.equal(gated.token_space.to_latents(gated.embed(indices)), latents)
    assert torch.equal(GraphGate(4, "sigmoid")(torch.rand(1, 4)), torch.full((1, 4), 0.5))


@pytest.mark.parametrize("dim", [4, None])
def test_map_sizes_are_those_of_the_maps(dim):
    token_space, z_q = space(dim=dim, init="phase" if dim else "noise"), None
    z_q = torch.randn(2, 8, token_space.dim)
    spectra = token_space._per_token(token_space.synthesis) if dim else None
    maps = torch.einsum("buk,ukp->bup", z_q, spectra.flatten(0, 1)) if dim else z_q
    magnitude = torch.view_as_complex(maps.unflatten(-1, (-1, 2)).contiguous()).abs()
    wanted = magnitude.square().mean(-1).sqrt()
    assert torch.allclose(map_sizes(z_q, spectra), wanted, rtol=1e-3)


# -- the tokenizer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny, literal])
def test_tokens_decode_without_anything_that_saw_the_image(build):
    model = build().eval()
    for parameter in model.token_space.gate.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    decided(model.token_space)
    images = torch.rand(2, 1, 16, 16)
    indices, reconstruction = model.encode(images), model(images).reconstruction
    del model.encoder, model.token_space.weights
    if model.token_space.projects:
        del model.token_space.analysis
    with torch.no_grad():
        assert torch.allclose(model.decode(indices), reconstruction, atol=1e-6)


def touched(model):
    """Return which share of the latents' pixels another code at one place changes noticeably.

    Latents, for the decoder sees the whole image whatever the tokens are; and noticeably means by
    more than a twentieth of the largest change.
    """
    indices = model.eval().encode(torch.rand(2, *model.image_shape) * 2 - 1)
    other = indices.clone()
    other[:, 3] = (other[:, 3] + 1) % 8
    with torch.no_grad():
        a, b = (model.token_space.to_latents(model.embed(tokens)) for tokens in (indices, other))
    change = (a - b).abs().amax(1)  # (B, h, w)
    return (change > 0.05 * change.amax((1, 2), keepdim=True)).float().mean().item()


def test_a_token_reaches_everywhere_unlike_a_filter_of_one_place_or_a_grid_token():
    """Over five seeds: 0.93 to 0.95 with filters of bins, 0.21 to 0.25 with those of places."""
    assert touched(tiny(filter_init="bins")) > 0.9
    assert touched(tiny(filter_init="shifts")) < 0.5
    assert touched(tiny(extractor="convolution", **GRID)) == 1 / 16  # its own cell


@pytest.mark.parametrize("form", [tiny, literal])
@pytest.mark.parametrize("channels", [1, 2, 4, 8, 16])
def test_table_3_trades_channels_for_filters(form, channels):
    model = form(latent_channels=channels, num_tokens=16)
    assert model.token_space.num_filters * channels == model.token_spec.num_tokens == 16
    assert model.token_spec.bits_per_image == 16 * 3
    assert model.latent_shape == (channels, 16, 16)
    train(model, steps=1)


def evenness(name):
    """Train on digits with one codebook of 32 codes; return the perplexity of the held-out ones."""
    torch.manual_seed(0)
    model = tiny(codebook_size=32, quantizer={"name": name, "num_codebooks": 1}).train()
    images = digits("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        batch = images[torch.randint(len(images), (32,))]
        loss = sum(model(batch).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step([optimizer])
    counts = count_codes(model.token_spec, model.eval().encode(digits("test")))
    return codebook_statistics(model.token_spec, counts)["levels"][0]["perplexity"]


def digits(split):
    data = build_dataset(DataConfig(name="digits", image_size=16, split=split), train=False)
    return torch.stack([data[i]["images"] for i in range(min(len(data), 600))])


@pytest.mark.slow
def test_codes_are_used_more_evenly_than_those_that_only_gradients_move():
    """Fig. 3, small: perplexity 21 to 26 of 32 over four seeds, with `vq` 11 to 15."""
    assert evenness("cvq_pearson") > 1.3 * evenness("vq")


FREQUENCY, SPATIAL = {}, {"extractor": "convolution", **GRID}
TABLE_2 = {
    "A": SPATIAL | {"quantizer": "vq", "graph_gate": None},
    "B": FREQUENCY | {"quantizer": "vq", "graph_gate": None},
    "C": SPATIAL | {"quantizer": "cvq", "graph_gate": None},
    "D": SPATIAL | {"quantizer": "cvq_pearson", "graph_gate": None},
    "E": SPATIAL | {"quantizer": "vq"},
    "F": FREQUENCY | {"quantizer": "cvq_pearson", "graph_gate": None},
    "G": SPATIAL | {"quantizer": "cvq_pearson"},
    "H": FREQUENCY | {"quantizer": "vq"},
    "I": FREQUENCY | {"quantizer": "cvq_pearson"},
}
TABLE_4 = {
    "convolution": SPATIAL,
    "transformer": {"extractor": "transformer", **GRID},
    "2D-FFT": FREQUENCY,
    "2D-FFT, literal": {"codebook_dim": None, "filter_init": "noise", "network": "conv"},
}
ROWS = TABLE_2 | TABLE_4


def train(model, steps):
    """Train on one batch; return the errors, and check that every parameter takes part."""
    optimizer, errors = torch.optim.Adam(model.train().parameters(), lr=3e-3), []
    images = torch.rand(8, 1, 16, 16) * 2 - 1
    for _ in range(steps):
        losses = model(images).losses
        errors.append(losses["reconstruction"].item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        model.after_step([optimizer])
    return errors


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_tables_2_and_4_trains(row):
    torch.manual_seed(0)
    model = tiny(**ROWS[row])
    errors = train(model, steps=12)
    assert errors[-1] < errors[0]
    assert (model.token_space.gate is None) == (ROWS[row].get("graph_gate", "") is None)


def test_literal_codes_are_whole_maps_of_one_codebook():
    model = literal()
    assert model.quantizer.codebook.shape == (1, 8, 2 * 16 * 9)
    assert model.token_spec.levels[0].codebook == "shared"
    assert tiny().token_spec.levels[0].codebook == "position"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_channels": 3}, "latent_channels 3 does not divide num_tokens 8; take e.g. 6"),
        ({"num_heads": 3}, "num_heads 3 does not divide num_tokens 8"),
        ({"codebook_dim": 5}, "codebook_dim 5 is odd"),
        ({"extractor": "convolution"}, "num_tokens 8 is not a square grid on 16 pixels, e.g. 16"),
        ({"extractor": "convolution", "downsample_factor": 2}, "8x8 = 64 tokens, not num_tokens 8"),
        ({"extractor": "transformer", "codebook_dim": None}, "needs a codebook_dim"),
        ({"image_size": 18, "downsample_factor": 4}, "image_size 18 is not divisible"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match=r"fqvae\.filter_init"):
        tiny(filter_init="band")


def test_downsampled_latents_keep_the_image_shape():
    for network in ("unet", "conv"):
        model = tiny(image_size=32, downsample_factor=2, network=network)
        images = torch.rand(2, 1, 32, 32)
        assert model.encode_latents(images).shape == (2, *model.latent_shape) == (2, 2, 16, 16)
        assert model(images).reconstruction.shape == images.shape


def test_latents_of_another_model_can_be_quantised():
    """Latent diffusion hands over latents alone; filters that needed features could not act."""
    model = tiny().eval()
    assert model.decode_latents(torch.randn(2, 2, 16, 16)).shape == (2, 1, 16, 16)


def recipe(name):
    return load_tokenizer_recipe(f"fqvae/{name}").tokenizer


@pytest.mark.parametrize("data", ["mnist", "cifar10", "celeba64", "lsun_church128"])
def test_each_data_set_has_a_literal_recipe_of_equal_bits(data):
    ours, paper = recipe(data), recipe(f"literal_{data}")
    for option in ("image_size", "num_tokens", "codebook_size", "latent_channels"):
        assert ours[option] == paper[option]
    assert paper["codebook_dim"] is None
    assert paper["quantizer"]["num_codebooks"] == 1


@pytest.mark.parametrize("extractor", ["convolution", "transformer"])
@pytest.mark.parametrize("data", ["mnist", "cifar10", "celeba64", "lsun_church128"])
def test_each_data_set_has_the_other_extractors_of_table_4(data, extractor):
    ours, other = recipe(f"literal_{data}"), recipe(f"{extractor}_{data}")
    assert other["extractor"] == extractor
    assert other["num_tokens"] == (ours["image_size"] // 4) ** 2
    assert other["quantizer"] == ours["quantizer"]


def test_the_recipe_for_comparisons_has_the_bits_of_an_8x8_grid():
    chosen = load_tokenizer_recipe("compare/cifar10/fqvae").tokenizer
    options = {key: value for key, value in chosen.items() if key != "name"}
    assert spectok.load_tokenizer("fqvae", **options).token_spec.bits_per_image == 64 * 9


# -- what codes carry (Fig. 3 and 4) ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, SPATIAL, {"quantizer": {"num_codebooks": 1}}])
def test_unit_information_is_the_error_without_a_code(options):
    torch.manual_seed(0)
    model, images = tiny(**options).eval(), torch.rand(3, 1, 16, 16)
    measured = study_codes(model, [images[:2], images[2:]]).information
    indices = model.encode(images)
    ids = model.token_spec.code_ids(indices)
    vectors = model.embed(indices)
    for code in ids.unique()[:4]:
        with torch.no_grad():
            without = vectors * (ids != code).unsqueeze(-1)
            errors = [
                (model.decoder(model.token_space.to_latents(v)) - images).square().mean()
                for v in (without, vectors)
            ]
        assert measured[code].item() == pytest.approx((errors[0] - errors[1]).item(), abs=1e-6)
    unused = torch.ones(model.token_spec.num_codes, dtype=torch.bool)
    unused[ids.flatten()] = False
    assert (measured[unused] == 0).all()


def test_a_study_needs_images():
    with pytest.raises(InputError, match="at least one image"):
        study_codes(tiny(), [])


def test_usage_counts_every_token():
    study = study_codes(tiny(), [torch.rand(3, 1, 16, 16), torch.rand(2, 1, 16, 16)])
    assert len(study.usage) == 8 * 8
    assert study.usage.view(8, 8).sum(1).tolist() == [5] * 8  # a codebook per token
    assert study.num_images == 5


def test_several_levels_are_counted_and_not_weighed():
    model = spectok.load_tokenizer("hrvqvae", image_size=16, in_channels=1, channels=8)
    study = study_codes(model, [torch.rand(2, 1, 16, 16)])
    assert study.information is None
    assert study.usage.sum() == 2 * model.token_spec.num_tokens


def test_the_command_draws_models_together(tmp_path, capsys):
    names = []
    for name, options in {"frequency": {}, "grid": SPATIAL}.items():
        tiny(**options).save_pretrained(tmp_path / name)
        names.append(str(tmp_path / name))
    picture = tmp_path / "codes.png"
    with pytest.raises(SystemExit) as stop:
        main(["codes", *names, "--data", "digits", "--out", str(picture), "--limit", "3"])
    printed = capsys.readouterr().out
    assert not stop.value.code
    assert "3 images" in printed
    assert all(name in printed for name in names)
    with Image.open(picture) as drawn:
        assert drawn.width > 2 * drawn.height


def test_curves_fall_and_share_an_axis():
    few, many = torch.tensor([3, 0, 9]), torch.arange(12)
    figure = draw_codes({"few": CodeStudy(few, None, 1), "many": CodeStudy(many, many / 2, 1)})
    usage, information = figure.axes
    curves = [line.get_xydata() for line in [*usage.lines[:2], *information.lines]]
    assert [len(curve) for curve in curves] == [3, 12, 12]
    for curve in curves:
        assert (curve[:-1, 1] >= curve[1:, 1]).all()
        assert 0 < curve[:, 0].min() < curve[:, 0].max() < 1
    assert usage.lines[0].get_ydata().mean() == pytest.approx(1)
