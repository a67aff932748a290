"""How cat reads a text, and the parts of its released code, against computations of their own."""

import math

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from spectok import Level, TokenSpec
from spectok.errors import ConfigError
from spectok_generation import SamplingOptions, create_prior, load_prior, load_text_encoder
from spectok_generation.conditions import TextFeatures, hide
from spectok_generation.priors.cat import pool
from spectok_generation.priors.layout import Grid, Layout, Shape
from spectok_generation.priors.positions import RelativeBias
from spectok_generation.priors.transformer import Attention, Block, Transformer, View
from spectok_generation.sampling import sample_batch

WIDTH = 6
TEXT = {"fingerprint": "x", "path": "a test", "width": WIDTH}
TINY = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0, "text": TEXT}
FORMS = ("cross", "pooled", "prefix")
PARTS = {
    "gpt2": {},
    "multi_query": {"attention": "multi_query"},
    "relative": {"positions": "relative_2d"},
    "tied": {"tied_embeddings": True},
    "narrow heads": {"head_width": 4},
    "released": {
        "attention": "multi_query",
        "positions": "relative_2d",
        "tied_embeddings": True,
        "head_width": 4,
        "block": "released",
    },
}
GRID = TokenSpec((Level((2, 3), 5),))
TWO = TokenSpec((Level((2, 2), 4), Level((2, 2), 3)))
SPECS = {
    "grid": GRID,
    "two levels": TWO,
    "place by place": TokenSpec((Level((2, 2), 4), Level((2, 2), 3)), order="position"),
}


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture(params=PARTS)
def parts(request):
    return PARTS[request.param]


@pytest.fixture
def prior(form, parts, sharp):
    return sharp(create_prior("cat", GRID, **TINY, **parts, text_conditioning=form))


def some_sequences(spec, count):
    return torch.stack([torch.randint(0, v, (count,)) for v in spec.vocab_sizes], dim=1)


def some_texts(lengths, places=5):
    mask = torch.arange(places) < torch.tensor(lengths)[:, None]
    return TextFeatures(torch.randn(len(lengths), places, WIDTH), mask)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


# -- every form of conditioning, with every part ---------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_cached_logits_equal_uncached_ones(form, parts, name, sharp, checked_shapes):
    spec = SPECS[name]
    prior = sharp(create_prior("cat", spec, **TINY, **parts, text_conditioning=form))
    tokens, text = some_sequences(spec, 4), some_texts([1, 5, 0, 3])
    expected = prior.logits(tokens, text)
    for first in range(spec.num_tokens):  # the first call takes in several tokens at once
        state = prior.start(text)
        for place in range(first, spec.num_tokens):
            logits = prior.next_logits(state, tokens[:, :place])
            close(logits, expected[:, place, : spec.vocab_sizes[place]])


def test_rows_of_a_cache_can_be_dropped(prior):
    tokens, text = some_sequences(GRID, 3), some_texts([1, 5, 0])
    expected, state = prior.logits(tokens, text), prior.start(text)
    prior.next_logits(state, tokens[:, :2])
    prior.keep_rows(state, 2)
    for place in (3, 4):
        close(prior.next_logits(state, tokens[:2, :place]), expected[:2, place])


def test_the_text_reaches_every_place_and_its_padding_none(prior, form):
    tokens, text = some_sequences(GRID, 2), some_texts([2, 4])
    text.features.requires_grad_(True)
    logits = prior.logits(tokens, text)
    read = text.mask.clone()
    if form == "pooled":  # the last token alone
        read[0, :1], read[1, :3] = False, False
    for place in range(GRID.num_tokens):
        chosen = (logits[:, place] * torch.randn(GRID.vocab_sizes[place])).sum()
        (found,) = torch.autograd.grad(chosen, text.features, retain_graph=True)
        assert torch.equal(found.norm(dim=2) > 1e-7, read)


def test_no_text_padding_and_guidance(prior):
    tokens, text = some_sequences(GRID, 3), some_texts([2, 5, 3])
    without = prior.logits(tokens, prior.check_condition(None, 3))
    masked = hide(text, torch.ones(3, dtype=torch.bool), 0)
    close(prior.logits(tokens, masked), without)
    assert (prior.logits(tokens, text) - without).abs().max() > 1e-2
    padding = TextFeatures(torch.randn(3, 2, WIDTH), torch.zeros(3, 2, dtype=torch.bool))
    longer = TextFeatures(
        torch.cat([text.features, padding.features], 1), torch.cat([text.mask, padding.mask], 1)
    )
    close(prior.logits(tokens, longer), prior.logits(tokens, text))
    plain = sample_batch(prior, range(3), text)
    for interval in ((0.0, 1.0), (0.4, 0.7)):
        nearly_one = SamplingOptions(guidance=1 + 1e-9, guidance_interval=interval)
        assert torch.equal(sample_batch(prior, range(3), text, options=nearly_one), plain)
    zero = sample_batch(prior, range(3), text, options=SamplingOptions(guidance=0.0))
    assert torch.equal(zero, sample_batch(prior, range(3), None))
    strong = SamplingOptions(guidance=3.0)
    together = sample_batch(prior, range(3), text, options=strong)
    alone = sample_batch(prior, [2], text[[2]].trim(), options=strong)
    assert torch.equal(alone[0], together[2])


def test_it_trains_all_its_weights_and_learns_which_text_belongs_to_which_tokens(form, parts):
    tokens, text = some_sequences(GRID, 2), some_texts([3, 2])
    tokens[1, 0] = (tokens[0, 0] + 1) % 5
    options = TINY | {"dropout": 0.01, "condition_dropout": 0.0}
    prior = create_prior("cat", GRID, **options, **parts, text_conditioning=form)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for _ in range(60):
        loss = prior(tokens, text).losses["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    idle = [n for n, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    prior.eval()
    right = prior.log_prob(tokens, text)
    assert (right > prior.log_prob(tokens, text[[1, 0]]) + 1).all()
    assert right.exp().min() > 0.5


def test_saved_prior_gives_the_same_logits(prior, form, tmp_path):
    prior.save_pretrained(tmp_path)
    loaded = load_prior(tmp_path)
    tokens, text = some_sequences(GRID, 2), some_texts([2, 4])
    assert torch.equal(loaded.logits(tokens, text), prior.logits(tokens, text))
    assert loaded.config["text_conditioning"] == form


def test_half_precision_is_near_the_full(prior):
    tokens, text = some_sequences(GRID, 2), some_texts([2, 4])
    with torch.autocast("cpu", torch.bfloat16):
        half = prior(tokens, text).losses["nll"]
    assert half.item() == pytest.approx(prior(tokens, text).losses["nll"].item(), rel=0.05)


# -- the pooled feature ----------------------------------------------------------------------------


def test_the_pooled_feature_is_the_one_of_the_clip(save_small_clip, tmp_path):
    save_small_clip(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.record["pools_last_token"]
    prompts = ["a red ring", "red", "a a a a a a a a a"]
    with pytest.warns(UserWarning, match="cut off"):
        pooled = pool(encoder(prompts))
    tokens = open_clip.SimpleTokenizer(context_length=8)(prompts)
    whole = open_clip.CLIP(**encoder.model_config)
    whole.load_state_dict(encoder.model.state_dict(), strict=False)
    close(pooled.features[:, 0], whole.encode_text(tokens))
    assert pooled.mask.shape == (3, 1)
    assert pooled.mask.all()
    assert not pool(TextFeatures.none(2, WIDTH)).mask.any()


def test_an_encoder_that_pools_elsewhere_is_refused():
    elsewhere = TEXT | {"pools_last_token": False}
    options = TINY | {"text": elsewhere}
    with pytest.raises(ConfigError, match="a test does not pool at the last token"):
        create_prior("cat", GRID, **options, text_conditioning="pooled")
    create_prior("cat", GRID, **options, text_conditioning="prefix")


def test_pooled_and_cross_are_the_same_network_and_differ_in_what_they_read(sharp):
    torch.manual_seed(0)
    pooled = sharp(create_prior("cat", GRID, **TINY, text_conditioning="pooled"))
    cross = create_prior("cat", GRID, **TINY).eval()
    cross.load_state_dict(pooled.state_dict())
    tokens, text = some_sequences(GRID, 2), some_texts([2, 4])
    last = TextFeatures(text.features[[0, 1], [1, 3]][:, None], torch.ones(2, 1).bool())
    assert torch.equal(pooled.logits(tokens, text), cross.logits(tokens, last))


# -- the parts against computations of their own ---------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_without_any_part_the_transformer_is_gpt2(form, sharp):
    prior = sharp(create_prior("cat", GRID, **TINY, text_conditioning=form))
    gpt2, prefix = prior.backbone, form == "prefix"
    layout = Layout(cross_attention=not prefix, prefix=prefix)
    ours = Transformer(GRID, Shape(2, 2, 16), layout, 0.0).eval()
    with torch.no_grad():
        gpt2.wpe.weight[GRID.num_tokens :] = 0  # here a text has no place
        ours.wte.weight.copy_(gpt2.wte.weight)
        ours.places.weight.copy_(gpt2.wpe.weight[: GRID.num_tokens])
        copy_norm(ours.norm, gpt2.ln_f)
        for block, theirs in zip(ours.blocks, gpt2.h):
            query, keys_values = theirs.attn.c_attn.weight.T.split([16, 32])
            bias, biases = theirs.attn.c_attn.bias.split([16, 32])
            set_linear(block.attention.query, query, bias)
            set_linear(block.attention.key_value, keys_values, biases)
            set_linear(block.attention.output, *transposed(theirs.attn.c_proj))
            copy_norm(block.norm, theirs.ln_1)
            copy_norm(block.feed_forward_norm, theirs.ln_2)
            set_linear(block.feed_forward.inner, *transposed(theirs.mlp.c_fc))
            set_linear(block.feed_forward.output, *transposed(theirs.mlp.c_proj))
            if not prefix:
                copy_norm(block.cross_norm, theirs.ln_cross_attn)
                set_linear(block.cross_attention.query, *transposed(theirs.crossattention.q_attn))
                set_linear(
                    block.cross_attention.key_value, *transposed(theirs.crossattention.c_attn)
                )
                set_linear(block.cross_attention.output, *transposed(theirs.crossattention.c_proj))
    tokens, text = some_sequences(GRID, 3), some_texts([2, 0, 5])
    expected = prior.logits(tokens, text)
    prior.backbone = ours
    close(prior.logits(tokens, text), expected)


def test_initial_weights_are_drawn_as_gpt2_draws_them():
    torch.manual_seed(0)
    made = Transformer(TWO, Shape(8, 4, 256), Layout("multi_query"), 0.0)
    deep = 0.02 / math.sqrt(16)
    for name, parameter in made.named_parameters():
        if name.endswith("output.weight"):
            assert parameter.std().item() == pytest.approx(deep, rel=0.05)
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


def test_multi_query_is_multi_head_with_the_key_and_value_weights_repeated():
    shape = Shape(1, 4, 16, 3)
    one = Attention(shape, Layout("multi_query"))
    many = Attention(shape, Layout("multi_head"))
    with torch.no_grad():
        many.query.load_state_dict(one.query.state_dict())
        many.output.load_state_dict(one.output.state_dict())
        for name in ("weight", "bias"):
            shared = getattr(one.key_value, name)
            repeated = torch.cat([shared] * 8)  # keys of four heads, then their values
            getattr(many.key_value, name).copy_(repeated)
    x, mask = torch.randn(2, 5, 16), torch.ones(5, 5).tril().bool()
    keys, values = one.read(x)
    assert keys.shape == (2, 1, 5, 3)
    assert torch.equal(keys, values)
    close(one(x, one.read(x), mask), many(x, many.read(x), mask))


@pytest.mark.parametrize("name", SPECS)
def test_the_bias_depends_on_the_offset_from_the_token_to_the_place(name):
    spec = SPECS[name]
    bias = RelativeBias(Grid.of(spec), 2)
    length = spec.num_tokens
    found = bias(torch.arange(length), length).detach().numpy()
    rows, columns = spec.levels[0].shape
    table, seen = bias.table.detach().numpy(), {}
    for i in range(length):
        assert (found[:, i, 0] == 0).all()  # the start holds no token
        for j in range(1, length):
            (y, x), (v, u) = (divmod(spec.position_of_place[p], columns) for p in (i, j - 1))
            offset = (y - v, x - u)
            expected = table[:, y - v + rows - 1, x - u + columns - 1]
            assert (found[:, i, j] == expected).all()
            # shifting both by as many rows and columns changes nothing
            assert (seen.setdefault(offset, found[:, i, j]) == found[:, i, j]).all()
    assert len({tuple(value) for value in seen.values()}) == len(seen)
    some = bias(torch.tensor([length - 1]), length)
    assert torch.equal(some, bias(torch.arange(length), length)[:, [-1]])


def test_tokens_elsewhere_on_the_grid_are_seen_the_same(sharp):
    spec = TokenSpec((Level((4, 5), 5),))
    block = sharp(create_prior("cat", spec, **TINY, **PARTS["relative"])).backbone.blocks[0]
    vectors = torch.randn(1, 4, 16)
    found = []
    for shift in (0, 5, 1, 6):  # by a row, a column, and both
        held = torch.tensor([0, 1, 5, 6]) + shift  # places of the tokens that are read
        asked = torch.tensor([7, 11, 12, 13]) + shift  # places that are predicted
        keys = torch.zeros(1, 20, 16)
        keys[:, held + 1] = vectors
        mask = torch.zeros(1, 1, 4, 20, dtype=torch.bool)
        mask[..., held + 1] = True
        logits = block._biased(View(mask, asked))
        found.append(block.attention(vectors, block.attention.read(keys), logits))
    for other in found[1:]:
        close(other, found[0])
    plain = block.attention(vectors, block.attention.read(keys), mask)
    assert (plain - found[0]).abs().max() > 1e-2


def test_the_released_block_is_what_numpy_computes(sharp):
    torch.manual_seed(3)
    layout = Layout("multi_query", "relative_2d", "released", True, cross_attention=True)
    block = Block(Shape(1, 2, 8, 3), layout, Grid.of(GRID), 0.0)
    sharp(block)
    weights = {name: value.double().numpy() for name, value in block.state_dict().items()}
    assert not [name for name in weights if name.endswith("bias") and name != "bias"]
    x, context = torch.randn(1, 6, 8), torch.randn(1, 3, 8)
    mask = torch.ones(6, 7).tril(1).bool()[None, None]  # the null entry, then the causal ones
    places = torch.arange(6)
    given = block.read_context(TextFeatures(context, torch.tensor([[True, True, False]])))
    found = block(x, View(mask, places, 1), given)[0]

    def norm(v, name):
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt(v.var(-1, keepdims=True) + 1e-5) * weights[name + ".weight"]

    def attend(name, asks, entries, logits):
        out = np.zeros((len(asks), 6))
        for head in range(2):
            query = asks @ weights[name + ".query.weight"][3 * head : 3 * head + 3].T
            scores = query @ entries.T / np.sqrt(3) + logits[head]
            share = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, 3 * head : 3 * head + 3] = share / share.sum(-1, keepdims=True) @ entries
        return out @ weights[name + ".output.weight"].T

    v, table = x[0].double().numpy(), weights["bias.table"]
    logits = np.full((2, 6, 7), -np.inf)
    for i in range(6):
        logits[:, i, :2] = 0  # null entry and start
        for j in range(1, i + 1):
            (y, u), (row, column) = divmod(i, 3), divmod(j - 1, 3)
            logits[:, i, j + 1] = table[:, y - row + 1, u - column + 2]
    normed = norm(v, "norm")
    entries = normed @ weights["attention.key_value.weight"].T
    entries = np.concatenate([weights["attention.null_entry"][None], entries])
    v = v + attend("attention", normed, entries, logits)
    entries = context[0, :2].double().numpy() @ weights["cross_attention.key_value.weight"].T
    v = v + attend("cross_attention", norm(v, "cross_norm"), entries, np.zeros((2, 6, 2)))
    inner = norm(v, "feed_forward_norm") @ weights["feed_forward.inner.weight"].T
    inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    v = v + norm(inner, "feed_forward.norm") @ weights["feed_forward.output.weight"].T
    np.testing.assert_allclose(found.detach().numpy(), v, rtol=1e-4, atol=1e-4)


LISTS = TokenSpec((Level((4,), 3, "position", 2),), prefix="tokens")


@pytest.mark.parametrize("spec", [GRID, TWO, LISTS, SPECS["place by place"]])
def test_tied_logits_are_products_with_the_embeddings_of_the_codes(spec, sharp):
    prior = sharp(create_prior("cat", spec, **TINY, tied_embeddings=True))
    tokens, text = some_sequences(spec, 2), some_texts([2, 4])
    hidden = []
    prior.backbone.register_forward_hook(lambda *a: hidden.append(a[-1].last_hidden_state))
    logits = prior.logits(tokens, text)
    for place, size in enumerate(spec.vocab_sizes):
        for index in range(size):
            there = tokens.clone()
            there[:, place] = index
            vector = prior.backbone.wte(spec.code_ids(there)[:, place])  # of that code, there
            expected = (hidden[0][:, place] * vector).sum(1)
            level = spec.level_of_place[place]
            run = spec.levels[level].num_tokens // spec.levels[level].num_codebooks
            owner = spec.position_of_place[place] // run
            close(logits[:, place, index], expected + prior.head.biases[level][owner, index])
    free = create_prior("cat", spec, **TINY)
    count = [sum(p.numel() for p in model.parameters()) for model in (free, prior)]
    assert count[0] - count[1] == spec.num_codes * TINY["width"]


def test_dropout_is_where_each_block_has_it():
    for block, places in (("gpt2", "output"), ("released", "input")):
        prior = create_prior(
            "cat", GRID, **TINY | {"dropout": 0.5}, attention="multi_query", block=block
        )
        made = prior.backbone.blocks[0]
        rates = {"input": made.drop_input.p, "output": made.drop_output.p}
        assert rates == {"input": 0.0, "output": 0.0} | {places: 0.5}
        assert made.attention.dropout == (0.5 if block == "gpt2" else 0.0)
        assert made.cross_attention.dropout == made.attention.dropout
        tokens, text = some_sequences(GRID, 2), some_texts([2, 4])
        assert not torch.equal(prior.logits(tokens, text), prior.logits(tokens, text))


# -- sizes and bad input ---------------------------------------------------------------------------


def test_the_released_sizes_have_611_million_parameters():
    spec = TokenSpec((Level((16, 16), 1024),))
    options = {name: value for name, value in PARTS["released"].items() if name != "head_width"}
    with torch.device("meta"):
        text = {"width": 768}
        prior = create_prior("cat", spec, size="cat-released", text=text, **options)
    count = sum(parameter.numel() for parameter in prior.parameters())
    assert count == pytest.approx(611e6, rel=0.005)
    first = prior.backbone.blocks[0]
    assert (len(prior.backbone.blocks), first.attention.query.weight.shape) == (24, (1024, 1536))


def test_bad_options():
    for spec, listed in [
        (LISTS, r"\(4,\)"),
        (TokenSpec((Level((1, 1), 4), Level((2, 2), 3))), r"\(1, 1\), \(2, 2\)"),
    ]:
        with pytest.raises(ConfigError, match=f"one grid, but .* shapes {listed}; use absolute"):
            create_prior("cat", spec, **TINY, positions="relative_2d")
    tree = TokenSpec((Level((2,), 2), Level((2,), 2, "path")))
    with pytest.raises(ConfigError, match="tied_embeddings: codebooks chosen by path"):
        create_prior("cat", tree, **TINY, tied_embeddings=True)
    with pytest.raises(ConfigError, match="text_conditioning"):
        create_prior("cat", GRID, **TINY, text_conditioning="suffix")
    with pytest.raises(ConfigError, match=r"not divisible by prior\.num_heads 3"):
        create_prior("cat", GRID, **TINY | {"num_heads": 3}, attention="multi_query")
    create_prior("cat", GRID, **TINY | {"num_heads": 3}, head_width=5)


# -- helpers ---------------------------------------------------------------------------------------


def copy_norm(ours, theirs):
    ours.load_state_dict(theirs.state_dict())


def transposed(layer):
    return layer.weight.T, layer.bias


def set_linear(layer: nn.Linear, weight, bias):
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
