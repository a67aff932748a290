"""The shipped kit, run over every quantizer and every tokenizer that is registered."""

from __future__ import annotations

import pytest

from spectok import list_quantizers, list_tokenizers
from spectok.testing import QuantizerConformance, TokenizerConformance
from spectok.testing.small import small_quantizer, small_tokenizer


@pytest.fixture(autouse=True)
def shapes_in_signatures(request):
    if "rejected" not in request.node.name:  # there, wrong shapes must reach our own messages
        request.getfixturevalue("checked_shapes")


class TestQuantizers(QuantizerConformance):
    @pytest.fixture(params=list_quantizers())
    def option(self, request):
        return request.param

    @pytest.fixture
    def build(self, option):
        return lambda: small_quantizer(option)


class TestTokenizers(TokenizerConformance):
    @pytest.fixture(params=list_tokenizers())
    def build(self, request):
        return lambda: small_tokenizer(request.param)


@pytest.mark.parametrize("quantizer", list_quantizers())
@pytest.mark.parametrize("tokenizer", list_tokenizers())
def test_every_quantizer_keeps_the_contract_of_every_tokenizer(tokenizer, quantizer):
    def build():
        return small_tokenizer(tokenizer, quantizer=quantizer)

    suite = TokenizerConformance()
    suite.test_tokens_fit_the_spec(build)
    suite.test_tokens_say_everything(build)
    suite.test_prefixes_decode_as_the_spec_says(build)
