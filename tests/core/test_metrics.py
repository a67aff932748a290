from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.utils.data import Subset

from spectok import Level, TokenSpec, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import DataError, InputError, UnknownNameError
from spectok.evaluation.reconstruction import evaluate_reconstruction
from spectok.images import to_uint8
from spectok.machine import shown_path
from spectok.metrics import (
    TWIN_ROWS,
    codebook_statistics,
    count_codes,
    find_twins,
    mse,
    psnr,
    ssim,
)
from spectok.plugins.registry import list_registered


@pytest.fixture
def pair():
    images = torch.rand(3, 3, 20, 24) * 2 - 1
    return images, images + 0.3 * torch.randn_like(images)


def as_8_bits(images):
    return [image.permute(1, 2, 0).numpy() for image in to_uint8(images)]


@pytest.mark.usefixtures("checked_shapes")
@pytest.mark.parametrize("noise", [0.003, 0.03, 0.3, 3.0])
def test_psnr_and_ssim_agree_with_scikit_image(pair, noise):
    pair = (pair[0], pair[0] + noise * torch.randn_like(pair[0]))
    originals, others = map(as_8_bits, pair)
    reference = [peak_signal_noise_ratio(a, b) for a, b in zip(originals, others)]
    assert psnr(*pair).tolist() == pytest.approx(reference, rel=1e-6)  # as float32 can tell
    reference = [
        structural_similarity(a, b, channel_axis=2, use_sample_covariance=False)
        for a, b in zip(originals, others)
    ]
    assert ssim(*pair).tolist() == pytest.approx(reference, abs=1e-6)


def test_mse_is_on_the_unit_scale():
    black, white = -torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    assert mse(black, white).tolist() == [1.0, 1.0]
    assert psnr(black, white).tolist() == [0.0, 0.0]


def test_equal_images_have_finite_values(pair):
    images, _ = pair
    almost = images + 0.2 / 255  # rounds to the same 8 bits nearly everywhere
    assert psnr(images, images).tolist() == [100.0] * 3
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3)
    assert (psnr(images, almost) > 50).all()


def test_values_outside_the_range_count_as_clamped():
    images = torch.full((1, 1, 8, 8), 1.0)
    assert mse(images, images * 3).tolist() == [0.0]


def test_sizes_that_do_not_fit_are_named(pair):
    images, others = pair
    with pytest.raises(InputError, match="differ"):
        psnr(images, others[..., :-1])
    with pytest.raises(InputError, match="smaller than the window"):
        ssim(images[..., :6], others[..., :6])


def test_built_in_metrics_are_registered():
    assert {"psnr", "ssim", "mse"} <= set(list_registered("metric"))


# -- a whole data set -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return load_tokenizer(
        "vqvae", image_size=16, in_channels=1, codebook_size=8, codebook_dim=4, channels=8
    ).eval()


@pytest.fixture(scope="module")
def dataset():
    return build_dataset(DataConfig(name="digits", split="test", limit=11), train=False)


def test_results_do_not_depend_on_the_batch_size(tokenizer, dataset):
    whole, pieces = (evaluate_reconstruction(tokenizer, dataset, size) for size in (11, 3))
    assert whole.keys() == pieces.keys()
    for name in ("psnr", "ssim", "mse", "perplexity", "codebook_usage"):
        assert whole[name] == pytest.approx(pieces[name], rel=1e-5)
    assert whole["num_images"] == 11


def test_values_are_the_means_over_decoded_tokens(tokenizer, dataset):
    images = torch.stack([dataset[i]["images"] for i in range(11)])
    with torch.no_grad():
        reconstruction = tokenizer.decode(tokenizer.encode(images))
    found = evaluate_reconstruction(tokenizer.train(), dataset, metrics=["psnr"])
    assert found["psnr"] == pytest.approx(psnr(images, reconstruction).mean().item(), rel=1e-5)
    assert "ssim" not in found
    assert found["bits_per_image"] == tokenizer.token_spec.bits_per_image == 16 * 3
    assert found["parameters"] == sum(p.numel() for p in tokenizer.parameters())


def test_an_unknown_metric_or_an_empty_data_set_is_refused(tokenizer, dataset):
    with pytest.raises(UnknownNameError, match="did you mean 'psnr'"):
        evaluate_reconstruction(tokenizer, dataset, metrics=["psmr"])
    with pytest.raises(DataError, match="empty"):
        evaluate_reconstruction(tokenizer, Subset(dataset, []))


# -- codebooks ------------------------------------------------------------------------------------


def count(spec, rows):
    return count_codes(spec, torch.tensor(rows))


def test_usage_and_perplexity_of_a_shared_codebook():
    spec = TokenSpec((Level((2, 2), 4),))
    found = codebook_statistics(spec, count(spec, [[0, 0, 1, 1]]))
    assert found["codebook_usage"] == 0.5
    assert found["perplexity"] == pytest.approx(2.0)


def test_codebooks_of_positions_are_told_apart():
    spec = TokenSpec((Level((2,), 4, "position", 2),))
    found = codebook_statistics(spec, count(spec, [[0, 3], [1, 3], [2, 3], [3, 3]]))
    assert found["codebook_usage"] == 5 / 8
    assert found["perplexity"] == pytest.approx((4 + 1) / 2)


def test_codebooks_of_paths_count_by_how_many_tokens_they_serve():
    spec = TokenSpec((Level((1,), 2), Level((1,), 2, "path")))
    found = codebook_statistics(spec, count(spec, [[0, 0], [0, 1], [0, 0], [0, 1]]))
    first, second = found["levels"]
    unknown = {"distinct_usage": None, "distinct_perplexity": None}
    assert first == {"codebook_usage": 0.5, "perplexity": pytest.approx(1.0), **unknown}
    assert second == {"codebook_usage": 0.5, "perplexity": pytest.approx(2.0), **unknown}
    assert found["perplexity"] == pytest.approx(1.5)


def test_levels_of_different_sizes_are_split_where_they_should_be():
    spec = TokenSpec((Level((1,), 3), Level((2, 2), 5)))
    rows = np.random.default_rng(0).integers(0, 3, size=(40, 5))
    first, second = codebook_statistics(spec, count(spec, rows.tolist()))["levels"]
    assert first["codebook_usage"] == 1.0
    assert second["codebook_usage"] == 3 / 5
    shares = np.bincount(rows[:, 1:].ravel()) / 160
    assert second["perplexity"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_perplexity_weighs_levels_by_how_many_tokens_they_serve():
    spec = TokenSpec((Level((1,), 2), Level((3,), 4)))
    found = codebook_statistics(spec, count(spec, [[0, 0, 1, 2], [0, 2, 1, 0]]))
    assert [level["perplexity"] for level in found["levels"]] == pytest.approx([1.0, 3.0])
    assert found["perplexity"] == pytest.approx((2 * 1 + 6 * 3) / 8)


def test_twins_are_connected_through_others_and_scale_with_the_codes():
    codes = torch.tensor([[[0.0], [1.0], [1.0007], [1.0014], [3.0]]])
    assert find_twins(codes).tolist() == [[0, 1, 1, 1, 4]]
    assert find_twins(1e-4 * codes).tolist() == [[0, 1, 1, 1, 4]]
    assert find_twins(torch.zeros(2, 3, 4)).tolist() == [[0, 0, 0], [0, 0, 0]]
    ran_away = torch.cat([codes, torch.full((1, 1, codes.shape[2]), 1e20)], dim=1)
    assert find_twins(ran_away).tolist() == [[0, 1, 1, 1, 4, 5]]
    evenly_spaced = torch.linspace(-1, 1, 512).view(1, 512, 1)
    assert find_twins(evenly_spaced).tolist() == [list(range(512))]


def test_many_codes_are_compared_in_parts():
    codes = torch.randn(1, 2 * TWIN_ROWS + 3, 4)
    codes[0, -1] = codes[0, 5]
    expected = [*range(2 * TWIN_ROWS + 2), 5]
    assert find_twins(codes).tolist() == [expected]


def test_twins_count_as_one_code_in_use():
    spec = TokenSpec((Level((2,), 4, "position", 2),))
    counts = count(spec, [[0, 3], [1, 3], [2, 3], [3, 3]])
    table = torch.tensor([[[0.0], [0.0], [0.0], [5.0]], [[1.0], [2.0], [3.0], [4.0]]])
    found = codebook_statistics(spec, counts, [table])
    assert (found["codebook_usage"], found["perplexity"]) == (5 / 8, pytest.approx(2.5))
    quarter = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found["distinct_usage"] == 3 / 8
    assert found["distinct_perplexity"] == pytest.approx((quarter + 1) / 2)


def test_results_name_no_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shown_path(tmp_path / ".cache" / "torch") == "~/.cache/torch"
    assert shown_path(Path("/elsewhere/torch")) == "/elsewhere/torch"
