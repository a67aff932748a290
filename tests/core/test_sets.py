"""Sets of images compared by their features: Fréchet, kernel distance, precision and recall."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from spectok.data import DataConfig, build_dataset
from spectok.errors import InputError
from spectok.evaluation import (
    Classes,
    FeatureSet,
    ImageClassifier,
    Networks,
    compare_features,
    evaluate_images,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from spectok.evaluation import sets as sets_module
from spectok.evaluation.generated import rebatched
from spectok.images import to_float
from spectok.machine import forget_peak_memory, peak_memory_bytes

# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [3, 20, 64])
def test_the_frechet_distance_is_that_of_scipys_matrix_root(dim):
    mixing = torch.randn(dim, dim, dtype=torch.float64)
    a = torch.randn(300, dim, dtype=torch.float64) @ mixing
    b = torch.randn(200, dim, dtype=torch.float64) + 0.3
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(first @ second).real
    means = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = means + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def unbiased_mmd(x, y):
    """Return the squared MMD with the kernel (x·y / D + 1)³, written out pair by pair."""
    kernel = [((p @ q.T / p.shape[1] + 1) ** 3) for p, q in ((x, x), (y, y), (x, y))]
    pairs = len(x) * (len(x) - 1)
    within = sum((k.sum() - k.diag().sum()) / pairs for k in kernel[:2])
    return float(within - 2 * kernel[2].mean())


@pytest.mark.usefixtures("checked_shapes")
def test_the_kernel_distance_of_small_sets_is_the_unbiased_estimate():
    x, y = torch.randn(40, 6), torch.randn(40, 6) * 1.5 + 0.2
    found, deviation = kernel_distance(x, y)
    assert found == pytest.approx(unbiased_mmd(x.double(), y.double()), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="at least two images of each set, not 1"):
        kernel_distance(x[:1], y)


def test_the_kernel_distance_of_large_sets_averages_subsets_that_are_always_the_same(monkeypatch):
    monkeypatch.setattr(sets_module, "KID_SUBSET_SIZE", 50)
    x, y = torch.randn(150, 4), torch.randn(120, 4) + 0.5
    state = torch.get_rng_state()
    found, deviation = kernel_distance(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert kernel_distance(x, y) == (found, deviation)
    assert deviation > 0
    whole = unbiased_mmd(x[:120].double(), y.double())
    assert found == pytest.approx(whole, abs=deviation)


@pytest.mark.parametrize("compare", [frechet_distance, kernel_distance, precision_recall])
def test_vectors_that_cannot_be_compared_are_refused(compare):
    good, broken = torch.randn(10, 8), torch.randn(10, 8)
    broken[3, 2] = math.nan
    for sets, message in [
        ((good, good[:, :7]), "features of 8 and of 7 numbers cannot be compared"),
        ((good, broken), "features are not all finite"),
        ((broken.nan_to_num(math.inf), good), "features are not all finite"),
        ((good, good[0]), r"features of shape \(8,\) are not \(N, D\)"),
    ]:
        with pytest.raises(InputError, match=message):
            compare(*sets)


def by_definition(real, fake, k):
    """Return precision and recall, one distance at a time."""

    def share_inside(points, centres):
        radii = [sorted(math.dist(c, other) for other in centres)[k] for c in centres]
        found = [any(math.dist(p, c) <= r for c, r in zip(centres, radii)) for p in points]
        return sum(found) / len(points)

    real, fake = real.tolist(), fake.tolist()
    return share_inside(fake, real), share_inside(real, fake)


@pytest.mark.usefixtures("checked_shapes")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(k, monkeypatch):
    monkeypatch.setattr("spectok.evaluation.neighbours.BLOCK_BYTES", 7 * 30 * 8)
    real, fake = torch.randn(30, 2), torch.randn(41, 2) * 0.6 + 0.5
    assert precision_recall(real, fake, k) == pytest.approx(by_definition(real, fake, k))
    assert 0 < min(precision_recall(real, fake, k)) < 1


def test_copies_are_precise_and_few_of_them_recall_little():
    real = torch.cat([torch.randn(50, 8), torch.randn(50, 8) + 100])
    assert precision_recall(real, real) == (1, 1)
    half = torch.cat([real[:50]] * 2)  # one of two kinds, each image twice
    precision, recall = precision_recall(real, half)
    assert precision == 1
    assert recall <= 0.5
    assert precision_recall(real, real + 1000) == (0, 0)
    equal = torch.ones(5, 8) * 1e3  # balls of no extent hold what is equal to their centre
    assert precision_recall(equal, equal) == (1, 1)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="more than k = 3 images of each set, not 3 and 9"):
        precision_recall(torch.randn(3, 2), torch.randn(9, 2))
    with pytest.raises(InputError, match="of 2 and of 3 numbers"):
        precision_recall(torch.randn(9, 2), torch.randn(9, 3))


def feature_set(vectors, size):
    found = FeatureSet()
    for part in vectors.split(size):
        found.add(part)
    return found


def test_vectors_beyond_the_first_are_only_counted(monkeypatch):
    monkeypatch.setattr(sets_module, "KEPT", 20)
    vectors = torch.randn(50, 4)
    found = feature_set(vectors, 7)
    assert len(found) == 50
    assert torch.equal(found.vectors, vectors[:20])
    assert torch.allclose(found.moments.mean, vectors.double().mean(0))
    numbers = compare_features(found, feature_set(vectors[:3], 2))
    assert set(numbers) == {"frechet", "kid", "kid_std"}  # three images have no third neighbour


# -- images ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
    return build_dataset(DataConfig(name="digits", split="test", limit=40), train=False)


def save_classifier(folder, **options):
    torch.manual_seed(1)
    record = {"trained_on": "digits/train", "held_out_accuracy": 0.5}
    shape = options.pop("image_shape", (1, 16, 16))
    ImageClassifier(
        shape, **{"num_classes": 10, "channels": 4, "feature_dim": 6} | record | options
    ).save_pretrained(folder)
    return Networks(classifier=folder)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="module")
def fake():
    torch.manual_seed(3)
    return torch.rand(100, 1, 16, 16) * 2 - 1


def test_results_do_not_depend_on_how_images_come(dataset, networks, fake):
    classes = Classes([i % 10 for i in range(100)], 10)
    found = [
        evaluate_images(fake.split(size), dataset, networks, classes=classes) for size in (7, 64)
    ]
    assert found[0] == found[1]
    assert set(found[0]["metrics"]) == {"class_accuracy"} | {
        f"classifier_{name}" for name in ("frechet", "kid", "kid_std", "precision", "recall")
    }
    assert found[0]["num_images"] == found[0]["protocol"]["num_generated"] == 100
    judge = found[0]["protocol"]["features"]["classifier"]
    assert judge == {"held_out_accuracy": 0.5, "trained_on": "digits/train"}


def test_the_data_itself_is_at_no_distance_and_recognised_as_the_classifier_sees_it(
    dataset, networks
):
    from spectok.evaluation import load_classifier

    real = to_float(torch.tensor(dataset.uint8_images()))
    seen = load_classifier(networks.classifier).classify(real).tolist()
    found = evaluate_images([real], dataset, networks, classes=Classes(seen, 10))["metrics"]
    assert found["classifier_frechet"] == pytest.approx(0, abs=1e-6)
    assert found["classifier_precision"] == found["classifier_recall"] == 1
    assert found["class_accuracy"] == 1
    wrong = [(label + 1) % 10 for label in seen[:10]] + seen[10:]
    found = evaluate_images([real], dataset, networks, classes=Classes(wrong, 10))
    assert found["metrics"]["class_accuracy"] == 0.75


def test_what_cannot_be_measured_says_why(dataset, networks, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = evaluate_images([fake], dataset, classes=Classes([0] * 100, 10))
    assert found["metrics"] == {}
    assert set(found["not_measured"]) == {"fid", "classifier_frechet", "class_accuracy"}
    assert "pt_inception-2015-12-05-6726825d.pth" in found["not_measured"]["fid"]
    other = Classes([0] * 100, 4)
    reason = evaluate_images([fake], dataset, networks, classes=other)["not_measured"]
    assert reason["class_accuracy"] == "the classifier knows 10 classes, and the images have 4"
    named = save_classifier(tmp_path / "named", class_names=[f"a {i}" for i in range(10)])
    other = Classes([0] * 100, 10, [f"b {i}" for i in range(10)])
    reason = evaluate_images([fake], dataset, named, classes=other)["not_measured"]
    assert "other names" in reason["class_accuracy"]
    few = evaluate_images([fake[:3]], dataset, networks)
    assert "classifier_frechet" in few["metrics"]
    assert few["not_measured"]["classifier_recall"] == "takes more than k = 3 images, not 3"


def test_images_that_do_not_fit_are_refused(dataset, networks, fake, tmp_path):
    with pytest.raises(InputError, match=r"of shape \(1, 8, 8\) cannot be compared with real ones"):
        evaluate_images([fake[..., :8, :8]], dataset, networks)
    with pytest.raises(InputError, match=r"1 generated and 40 real images .* at least 2"):
        evaluate_images([fake[:1]], dataset, networks)
    with pytest.raises(InputError, match="99 labels for 100 images"):
        evaluate_images([fake], dataset, networks, classes=Classes([0] * 99, 10))
    colour = save_classifier(tmp_path / "colour", image_shape=(3, 16, 16))
    with pytest.raises(InputError, match=r"takes images of shape \(3, 16, 16\)"):
        evaluate_images([fake], dataset, colour)


def test_batches_are_regrouped_in_order():
    numbers = torch.arange(23)
    parts = list(rebatched(numbers.split(5), 8))
    assert [len(part) for part in parts] == [8, 8, 7]
    assert torch.equal(torch.cat(parts), numbers)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(dataset, networks):
    def drawn(count):
        generator = torch.Generator().manual_seed(0)
        for _ in range(count // 100):
            yield torch.rand(100, 1, 16, 16, generator=generator) * 2 - 1

    def peak(count):
        gc.collect()
        assert forget_peak_memory()
        evaluate_images(drawn(count), dataset, networks)
        return peak_memory_bytes()

    if not forget_peak_memory():
        pytest.skip("this system does not tell the peak of memory")
    peak(100)  # libraries are loaded once
    images = 10_000 * 16 * 16 * 4
    assert peak(10_000) - peak(100) < 24 << 20 < 3 * images
