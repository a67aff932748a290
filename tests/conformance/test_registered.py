"""The shipped kit, run over every quantizer and every tokenizer that is registered."""

from __future__ import annotations

import functools

import pytest

from spectok import list_quantizers, list_tokenizers
from spectok.testing import QuantizerConformance, TokenizerConformance
from spectok.testing.small import small_quantizer, small_tokenizer

TOKEN_SPACES = ("vqvae", "qgvae", "fqvae")  # a grid, a list of global tokens, frequency maps
NEVER_EDITED = ["fsq", "lfq", "bsq", "simvq", "residual_fsq", "residual_lfq", "residual_simvq"]
NEVER_EDITED += ["vq", "sq", "gumbel", "wasserstein"]
BATCH_ENTROPY = ["lfq", "bsq", "residual_lfq"]
TRANSPORT = "the transport of a batch to the codes is not the mean of its parts' transports"


@pytest.fixture(autouse=True)
def shapes_in_signatures(request):
    # Wrong shapes must reach our own messages, and training in many tokenizers should be quick.
    if not any(name in request.node.name for name in ("rejected", "trains_inside")):
        request.getfixturevalue("checked_shapes")


class TestQuantizers(QuantizerConformance):
    tokenizers = TOKEN_SPACES
    fit_steps = 10
    fit_learning_rate = 1e-2

    @pytest.fixture(params=list_quantizers())
    def option(self, request):
        return request.param

    @pytest.fixture
    def build(self, option):
        return lambda: small_quantizer(option)

    def test_revived_codes_survive(self, build, option):
        if option in NEVER_EDITED:
            pytest.skip("codes are given by a formula, or move by gradient alone: none is revived")
        super().test_revived_codes_survive(build)

    def test_accumulation_equals_one_big_step(self, build, option):
        if option in BATCH_ENTROPY:
            pytest.skip("the entropy of a batch's mean is not the mean of its parts' entropies")
        if option == "wasserstein":
            pytest.skip(TRANSPORT)
        super().test_accumulation_equals_one_big_step(build)

    def test_memory_is_bounded(self, build, option):
        if len(build().levels) > 1:  # what the levels keep would hide a table of a few codes
            build = functools.partial(small_quantizer, option, codebook_size=256)
        super().test_memory_is_bounded(build)


VARIANTS = [
    ("cvq", {"anchor": "random"}),
    ("cvq", {"anchor": "probrandom"}),
    ("cvq_pearson", {"decay_rule": "printed"}),
    ("cvq_pearson", {"decay_rule": "cvq"}),
    ("voronoi", {"num_codebooks": 1}),
    ("voronoi", {"num_codebooks": 4}),
    ("tree", {"update": "ema"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_other_ways_to_edit_codes_do_not_depend_on_how_a_batch_is_split(name, options):
    def build():
        return small_quantizer(name, **options)

    suite = QuantizerConformance()
    suite.test_accumulation_equals_one_big_step(build)
    suite.test_two_processes_equal_one(build)


class TestTokenizers(TokenizerConformance):
    @pytest.fixture(params=list_tokenizers())
    def key(self, request):
        return request.param

    @pytest.fixture
    def build(self, key):
        return lambda: small_tokenizer(key)

    def test_accumulation_equals_one_big_step(self, build, key):
        if key == "dqvae":  # the square of a mean share is not the mean of its parts' squares
            build = functools.partial(small_tokenizer, key, budget_weight=0.0)
        if key == "vqwae":
            pytest.skip(TRANSPORT)
        super().test_accumulation_equals_one_big_step(build)

    def test_gradient_reaches_the_encoder(self, build, key):
        if key == "latentvq":
            pytest.skip("its encoder is a pretrained one and stays as it is")
        super().test_gradient_reaches_the_encoder(build)

    def test_embed_is_z_q(self, build, key):
        if key == "hvqvae":
            pytest.skip("its lower layers quantise too, but the tokens are the top layer's")
        super().test_embed_is_z_q(build)


PAIRS = {(t, q) for t in TOKEN_SPACES for q in list_quantizers()}
PAIRS |= {(t, q) for t in list_tokenizers() for q in ("vq", "rq")}  # of one level, of several


@pytest.mark.parametrize(("tokenizer", "quantizer"), sorted(PAIRS))
def test_every_quantizer_keeps_the_contract_of_every_tokenizer(tokenizer, quantizer):
    def build():
        return small_tokenizer(tokenizer, quantizer=quantizer)

    suite = TokenizerConformance()
    suite.test_tokens_fit_the_spec(build)
    suite.test_tokens_say_everything(build)
    suite.test_prefixes_decode_as_the_spec_says(build)
