"""Classes and texts: indexed, joined, hidden and checked alike."""

import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import InputError
from spectok_generation import create_prior
from spectok_generation.conditions import TextFeatures, check_text, hide, join


def texts(lengths, places=5, width=3):
    mask = torch.arange(places) < torch.tensor(lengths)[:, None]
    return TextFeatures(torch.randn(len(lengths), places, width), mask)


@pytest.mark.usefixtures("checked_shapes")
def test_texts_are_indexed_and_joined_as_tensors_are():
    text = texts([2, 5, 1])
    assert len(text) == 3
    assert text.width == 3
    assert text[[2, 0]].mask.sum(1).tolist() == [1, 2]
    longer = texts([7], places=8)
    both = join(text, longer)
    assert both.mask.sum(1).tolist() == [2, 5, 1, 7]
    assert torch.equal(both.features[:3, :5], text.features)
    assert torch.equal(both.features[3:], longer.features)
    labels = join(torch.tensor([1, 2]), torch.tensor([0]))
    assert labels.tolist() == [1, 2, 0]


@pytest.mark.usefixtures("checked_shapes")
def test_places_that_no_text_uses_are_trimmed():
    text = texts([2, 3, 1])
    assert text.trim().features.shape == (3, 3, 3)
    assert torch.equal(text.trim().mask, text.mask[:, :3])
    assert TextFeatures.none(2, 3).trim().features.shape == (2, 1, 3)
    assert texts([]).trim().features.shape == (0, 1, 3)


@pytest.mark.usefixtures("checked_shapes")
def test_conditions_are_hidden_one_by_one():
    hidden = torch.tensor([True, False, True])
    assert hide(torch.tensor([1, 0, 1]), hidden, 2).tolist() == [2, 0, 2]
    text = texts([2, 5, 1])
    assert hide(text, hidden, 0).mask.sum(1).tolist() == [0, 5, 0]
    assert text.mask.sum(1).tolist() == [2, 5, 1]


def test_as_many_conditions_are_hidden_as_stated_and_only_in_training():
    spec = TokenSpec((Level((2,), 2),))
    options = {"num_layers": 1, "num_heads": 1, "width": 4}
    prior = create_prior("gpt", spec, num_classes=3, condition_dropout=0.25, **options)
    labels = torch.arange(6000) % 3
    torch.manual_seed(0)
    dropped = prior.train().drop_condition(labels)
    hidden = dropped == 3  # the number after the last class stands for none
    assert 0.22 < hidden.float().mean() < 0.28
    assert torch.equal(dropped[~hidden], labels[~hidden])
    assert torch.equal(prior.eval().drop_condition(labels), labels)


def test_bad_input():
    with pytest.raises(InputError, match="give one or the other"):
        join(texts([1]), torch.tensor([1]))
    with pytest.raises(InputError, match="3 texts are not 2; give one for each image"):
        check_text(texts([1, 2, 3]), 3, 2)
    with pytest.raises(InputError, match="of length 3 are not the 4 that this prior reads"):
        check_text(texts([1]), 4, 1)
    with pytest.raises(InputError, match="without text"):
        check_text(texts([1]), 0, 1)
