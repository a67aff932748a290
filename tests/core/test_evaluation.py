"""Evaluation: Fréchet distances, what is not measured, protocols, and the classifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from spectok import Level, TokenSpec, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, DataError, InputError
from spectok.evaluation import (
    Evaluation,
    ImageClassifier,
    Moments,
    Networks,
    compare_results,
    evaluate,
    frechet_distance,
    load_classifier,
)
from spectok.evaluation.codebooks import UsageByPosition
from spectok.evaluation.inception import InceptionFeatures, average_inside, build_network
from spectok.evaluation.reconstruction import evaluate_reconstruction
from spectok.losses import LPIPS
from spectok.metrics import SetMetric, codebook_statistics, count_codes

# -- the Fréchet distance --------------------------------------------------------------------------


def with_moments(mean, covariance, count=50):
    """Return vectors whose mean and covariance are exactly these."""
    noise = torch.randn(count, len(mean), dtype=torch.float64)
    noise = noise - noise.mean(0)
    found = torch.cov(noise.T).view(len(mean), len(mean))  # of one dimension, torch gives a number
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(found), noise.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


@pytest.mark.usefixtures("checked_shapes")
def test_gaussians_of_one_dimension_have_the_closed_form():
    a = with_moments(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    b = with_moments(torch.tensor([-2.0]).double(), torch.tensor([[0.25]]).double())
    assert frechet_distance(a, b) == pytest.approx((1 + 2) ** 2 + (2 - 0.5) ** 2)


def test_gaussians_with_commuting_covariances_have_the_closed_form():
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    first, second = torch.tensor([[1.0, 4.0, 9.0, 0.25], [4.0, 1.0, 0.01, 2.0]]).double()
    mean = torch.randn(4, dtype=torch.float64)
    a = with_moments(mean, rotation @ first.diag() @ rotation.T)
    b = with_moments(mean + 0.5, rotation @ second.diag() @ rotation.T)
    expected = 4 * 0.5**2 + (first.sqrt() - second.sqrt()).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected)


class Flatten(nn.Module):
    """Features that are the pixels themselves, in the form torchmetrics asks for."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1).double()


def test_it_is_what_torchmetrics_computes():
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = torch.rand(40, 3, 2, 2), torch.rand(30, 3, 2, 2) ** 2
    reference = FrechetInceptionDistance(feature=Flatten(), normalize=True).set_dtype(torch.float64)
    reference.update(real, real=True)
    reference.update(fake, real=False)
    expected = reference.compute().item()
    assert frechet_distance(real.flatten(1), fake.flatten(1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("checked_shapes")
def test_moments_do_not_depend_on_batches_and_survive_large_means():
    features = torch.randn(100, 5, dtype=torch.float64) + 1e6
    moments = Moments()
    for part in features.split(7):
        moments.add(part)
    assert moments.count == 100
    assert torch.allclose(moments.mean, features.mean(0), rtol=1e-14)
    assert torch.allclose(moments.covariance, torch.cov(features.T), rtol=1e-6, atol=1e-8)
    assert frechet_distance(moments, features) == pytest.approx(0, abs=1e-6)


def test_fewer_vectors_than_dimensions_are_enough_and_one_is_not():
    features = torch.randn(5, 40)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(features, features + 1) == pytest.approx(40, rel=1e-4)
    with pytest.raises(InputError, match="at least two"):
        frechet_distance(features[:1], features)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="of 4 and of 3 numbers"):
        frechet_distance(torch.randn(9, 4), torch.randn(9, 3))
    with pytest.raises(InputError, match="not all finite"):
        frechet_distance(torch.full((9, 4), torch.nan), torch.randn(9, 4))
    moments = Moments()
    moments.add(torch.randn(2, 4))
    with pytest.raises(InputError, match=r"\(2, 3\) are not \(N, 4\)"):
        moments.add(torch.randn(2, 3))


# -- codebooks at each position --------------------------------------------------------------------

SPECS = {
    "shared": TokenSpec((Level((2, 2), 5),)),
    "position": TokenSpec((Level((4,), 5, "position", 2),)),
    "path": TokenSpec((Level((3,), 2), Level((3,), 4, "path"))),
    "interleaved": TokenSpec((Level((3,), 2), Level((3,), 4)), order="position"),
}


@pytest.mark.parametrize("kind", SPECS)
def test_usage_by_position_counts_what_stands_there(kind):
    spec = SPECS[kind]
    tokens = torch.cat([torch.randint(0, k, (60, 1)) for k in spec.vocab_sizes], 1)
    usage, nothing = UsageByPosition(spec), torch.zeros(0)
    for part in tokens.split(7):
        usage.add(nothing, nothing, part)
    codes, found = spec.code_ids(tokens), usage.result()
    for place, (level, position) in enumerate(zip(spec.level_of_place, spec.position_of_place)):
        shares = codes[:, place].unique(return_counts=True)[1] / 60
        size = 8 if kind == "path" and level == 1 else spec.levels[level].vocab_size
        entropy = -(shares * shares.log()).sum().item()
        assert found[level]["codebook_usage"][position] == pytest.approx(len(shares) / size)
        assert found[level]["perplexity"][position] == pytest.approx(math.exp(entropy))


def test_at_one_position_usage_is_that_of_the_level():
    spec = TokenSpec((Level((1,), 6),))
    tokens = torch.tensor([[0], [1], [1], [5]])
    usage, nothing = UsageByPosition(spec), torch.zeros(0)
    usage.add(nothing, nothing, tokens)
    whole = codebook_statistics(spec, count_codes(spec, tokens))["levels"][0]
    names = ("codebook_usage", "perplexity")
    assert usage.result() == [{name: [whole[name]] for name in names}]


# -- a whole evaluation ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return load_tokenizer(
        "vqvae", image_size=32, in_channels=1, codebook_size=8, codebook_dim=4, channels=8
    ).eval()


@pytest.fixture(scope="module")
def dataset():
    data = DataConfig(name="digits", split="test", limit=11, image_size=32)
    return build_dataset(data, train=False)


def save_classifier(folder, image_shape=(1, 32, 32), trained_on="some digits"):
    torch.manual_seed(1)
    model = ImageClassifier(
        image_shape, 10, channels=4, feature_dim=6, trained_on=trained_on, held_out_accuracy=0.1
    )
    model.save_pretrained(folder)
    return folder


def save_squeezenet(path):
    """Save random weights under the names and shapes of SqueezeNet's backbone."""
    from torchvision.models import squeezenet1_1

    state = {k: v for k, v in squeezenet1_1().state_dict().items() if k.startswith("features")}
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    lpips = save_squeezenet(folder / "squeeze.safetensors")
    return Networks(lpips, "squeeze", classifier=save_classifier(folder / "classifier"))


@pytest.fixture(scope="module")
def result(tokenizer, dataset, networks):
    return evaluate(tokenizer, dataset, Evaluation(batch_size=11, networks=networks))


def test_results_do_not_depend_on_the_batch_size(tokenizer, dataset, networks, result):
    pieces = evaluate(tokenizer, dataset, Evaluation(batch_size=3, networks=networks))
    classifier = {f"classifier_{n}" for n in ("frechet", "kid", "kid_std", "precision", "recall")}
    assert set(result["metrics"]) == {"psnr", "ssim", "mse", "lpips"} | classifier
    assert result["metrics"] == pieces["metrics"]
    assert result["levels"] == pieces["levels"]
    assert result["protocol"] == pieces["protocol"]


def test_a_cpu_takes_blocks_of_one_size_whatever_the_batch_size(tokenizer, dataset, monkeypatch):
    sizes, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda x: sizes.append(len(x)) or encode(x))
    found = [evaluate_reconstruction(tokenizer, dataset, size) for size in (1, 4, 64)]
    assert sizes == [16] * 3
    assert found[0]["num_images"] == len(dataset) == 11
    assert found[1:] == found[:2]


@pytest.mark.slow
def test_numbers_are_identical_with_any_batch_size_on_a_cpu():
    """Products of QG-VAE's 64 heads round differently with 7 and with 64 rows."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("qgvae", image_size=32, in_channels=1)
    data = build_dataset(DataConfig(name="digits", split="test", limit=65, image_size=32))
    first, *others = (evaluate_reconstruction(tokenizer, data, size) for size in (7, 64, 1))
    assert all(found == first for found in others)


def test_costs_are_measured(result, tokenizer):
    assert result["images_per_second"] > 0
    assert result["speed_batch_size"] == 11
    assert result["parameters"] == sum(p.numel() for p in tokenizer.parameters())
    assert result["bits_per_image"] == 64 * 3
    assert len(result["levels"][0]["positions"]["perplexity"]) == 64
    assert result["peak_memory_bytes"] is None or result["peak_memory_bytes"] > 2**20


def test_metrics_are_taken_after_rounding_to_8_bits(tokenizer, dataset, networks, result):
    images = torch.stack([dataset[i]["images"] for i in range(11)])
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.encode(images))
        rounded = (decoded.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
        features = load_classifier(networks.classifier).features
        distance = LPIPS("squeeze", networks.lpips)(rounded, images).mean().item()
        frechet = frechet_distance(features(images), features(rounded))
    assert result["metrics"]["lpips"] == pytest.approx(distance, rel=1e-4)
    assert result["metrics"]["classifier_frechet"] == pytest.approx(frechet, rel=1e-3)


def test_without_weights_nothing_is_measured_and_the_file_is_named(
    tokenizer, dataset, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = evaluate(tokenizer, dataset)
    assert set(found["metrics"]) == {"psnr", "ssim", "mse"}
    missing = found["not_measured"]
    assert set(missing) == {"lpips", "rfid", "classifier_frechet"}
    assert "alexnet-owt-7be5be79.pth" in missing["lpips"]
    assert "pt_inception-2015-12-05-6726825d.pth" in missing["rfid"]
    assert str(tmp_path) in missing["rfid"]
    assert "spectok train classifier" in missing["classifier_frechet"]
    assert found["protocol"]["extractors"] == {}


@pytest.mark.parametrize("name", ["lpips", "inception"])
def test_weights_that_were_given_and_do_not_fit_are_an_error(tokenizer, dataset, tmp_path, name):
    wrong = tmp_path / "wrong.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, wrong)
    with pytest.raises(CheckpointError, match="are not those of"):
        evaluate(tokenizer, dataset, Evaluation(networks=Networks(**{name: wrong})))


def test_a_classifier_of_other_images_is_refused(tokenizer, dataset, tmp_path):
    folder = save_classifier(tmp_path / "other", (3, 16, 16))
    with pytest.raises(InputError, match=r"takes images of shape \(3, 16, 16\)"):
        evaluate(tokenizer, dataset, Evaluation(networks=Networks(classifier=folder)))


def test_images_of_another_shape_are_refused(tokenizer):
    data = DataConfig(name="digits", split="test", limit=3)
    with pytest.raises(InputError, match=r"do not fit the tokenizer.*set data.image_size"):
        evaluate(tokenizer, build_dataset(data, train=False))


class MeanIndex(SetMetric):
    """A metric of a whole set, as a plugin would register it."""

    def __init__(self):
        self.parts = []

    def add(self, images, reconstruction, indices):
        self.parts.append(indices)

    def result(self):
        return float(torch.cat(self.parts).double().mean())


def test_a_plugin_registers_metrics_of_sets(tokenizer, dataset, monkeypatch):
    from spectok.plugins import registry

    registered = registry.list_registered("metric") | {"mean_index": MeanIndex}
    monkeypatch.setattr(registry, "get_registered", lambda kind, name: registered[name])
    found = evaluate(tokenizer, dataset, Evaluation(metrics=("mean_index", "psnr")))
    images = torch.stack([dataset[i]["images"] for i in range(11)])
    assert found["metrics"]["mean_index"] == tokenizer.encode(images).double().mean().item()
    assert set(found["metrics"]) == {"mean_index", "psnr"}


# -- the protocol ----------------------------------------------------------------------------------


def test_results_of_one_protocol_are_compared(result, tokenizer, dataset, networks):
    again = evaluate(tokenizer, dataset, Evaluation(networks=networks))
    assert compare_results({"a": result, "b": again})["id"] == result["protocol"]["id"]


def test_results_of_two_protocols_are_not(result, tokenizer, networks, dataset):
    data = DataConfig(name="digits", split="test", limit=9, image_size=32)
    fewer = evaluate(tokenizer, build_dataset(data, train=False), Evaluation(networks=networks))
    with pytest.raises(InputError, match=r"a and b .*cannot be compared .*num_images 11 and 9"):
        compare_results({"a": result, "b": fewer})
    without = evaluate(tokenizer, dataset)
    with pytest.raises(InputError, match="extractors"):
        compare_results({"a": result, "b": without})


# -- Inception -------------------------------------------------------------------------------------


def test_padding_is_left_out_of_means():
    ones = torch.ones(1, 2, 5, 5)
    assert torch.equal(average_inside(ones), ones)
    block = build_network().Mixed_5b
    assert block._forward.__qualname__.startswith("change_pooling")


@pytest.mark.slow
def test_inception_is_that_of_torch_fidelity(tmp_path):
    reason = "the package torch-fidelity is absent"
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=reason)
    state = build_network().to_empty(device="cpu").state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 4:
            state[name] = torch.randn(tensor.shape) * (2 / tensor[0].numel()) ** 0.5
        elif tensor.is_floating_point():
            state[name] = torch.rand(tensor.shape) + 0.5
    torch.save(state, tmp_path / "inception.pth")
    path = str(tmp_path / "inception.pth")
    reference = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], path)
    images = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    expected = reference(images)[0]
    found = InceptionFeatures(path)((images.float() - 128) / 128)  # their scale
    assert torch.allclose(found, expected, rtol=1e-4)


# -- the classifier --------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked_shapes")
def test_features_have_the_length_that_was_asked_for():
    for shape, width in [((1, 28, 28), 8), ((3, 32, 32), 100), ((1, 4, 4), 6)]:
        model = ImageClassifier(shape, 3, channels=4, feature_dim=width).eval()
        assert model.features(torch.randn(2, *shape)).shape == (2, width)
        assert model(torch.randn(2, *shape)).shape == (2, 3)


def test_a_saved_classifier_is_the_same(tmp_path):
    folder = save_classifier(tmp_path / "model")
    model, images = load_classifier(tmp_path), torch.randn(3, 1, 32, 32)
    assert model.config["held_out_accuracy"] == 0.1
    assert model.fingerprint == load_classifier(folder).fingerprint
    assert torch.equal(model.classify(images), load_classifier(folder).classify(images))
    with pytest.raises(InputError, match=r"takes \(B, 1, 32, 32\)"):
        model.features(images[..., :16])


def test_a_folder_without_a_trained_classifier_is_refused(tmp_path, tokenizer):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_classifier(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="never trained"):
        load_classifier(save_classifier(tmp_path / "untrained", trained_on=None))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="not ImageClassifier"):
        load_classifier(tmp_path / "tokenizer")


@pytest.mark.slow
def test_a_classifier_learns_digits_from_its_seed_alone(tmp_path):
    from spectok.evaluation import ClassifierRecipe, train_classifier

    def learn(seed):
        options = {"steps": 40, "batch_size": 32, "learning_rate": 1e-2, "warmup_steps": 5}
        raw = {"data": {"name": "digits", "max_shift": 1}, "train": options, "seed": seed}
        run = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        train_classifier(ClassifierRecipe.model_validate(ClassifierRecipe.complete(raw)), run)
        torch.rand(3)  # the global random state decides nothing
        return load_classifier(run)

    first, again, other = learn(0), learn(0), learn(1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert min(model.config["held_out_accuracy"] for model in (first, other)) > 0.8


def test_images_without_classes_train_no_classifier(tmp_path):
    from spectok.evaluation import ClassifierRecipe, train_classifier

    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.new("L", (16, 16), 80 * i).save(tmp_path / "pictures" / f"{i}.png")
    data = DataConfig(name="folder", path=str(tmp_path / "pictures"), image_size=16)
    with pytest.raises(DataError, match="has no classes"):
        train_classifier(ClassifierRecipe(data=data), tmp_path / "run")


def test_a_classifier_is_trained_on_what_an_evaluation_compares(tmp_path):
    """CelebA on a black square: neither sees the border."""
    from spectok.evaluation import ClassifierRecipe, train_classifier

    generator = np.random.default_rng(0)
    for i in range(12):
        pixels = generator.integers(128 * (i % 2), 128 * (i % 2 + 1), (218, 178, 3), dtype=np.uint8)
        for split in ("train", "test"):
            folder = tmp_path / "faces" / split / ("dark", "bright")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    data = DataConfig(name="celeba256", path=str(tmp_path / "faces"), image_size=32)
    options = {"steps": 20, "batch_size": 12, "learning_rate": 1e-2}
    recipe = ClassifierRecipe.model_validate(
        {"data": data.model_dump(), "train": options, "classifier": {"channels": 4}}
    )
    model = train_classifier(recipe, tmp_path / "run").model
    assert model.image_shape == (3, 32, 26)
    assert load_classifier(tmp_path / "run").config["held_out_accuracy"] == 1
    tokenizer = load_tokenizer("vqvae", image_size=32, codebook_size=8, codebook_dim=4, channels=8)
    held_out = build_dataset(data.model_copy(update={"split": "test"}), train=False)
    found = evaluate(
        tokenizer, held_out, Evaluation(networks=Networks(classifier=tmp_path / "run"))
    )
    assert math.isfinite(found["metrics"]["classifier_frechet"])
