"""The kit can fail: each class here breaks one rule, and the check named beside it says so."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from spectok.distributed import world
from spectok.errors import ConfigError, SpectokError
from spectok.outputs import QuantizerOutput
from spectok.quantizers import codebook_losses
from spectok.testing import QuantizerConformance, TokenizerConformance
from spectok.testing.small import small_options
from spectok_hrvqvae.quantizer import TreeQuantizer
from spectok_vq.model import VQVAE
from spectok_vq.quantizer import EMAQuantizer, GradientQuantizer

CAUGHT = (AssertionError, SpectokError)  # a check's own message, or that of the contract it calls
SIZES = {"dim": 8, "num_tokens": 16, "codebook_size": 32}


# -- quantizers ---


class LeaksVectors(GradientQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        output.z_q = output.z_q + 0.01 * (z - output.z_q)
        return output


class Int32Indices(GradientQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        output.indices = output.indices.int()
        return output

    def lookup(self, indices):
        return super().lookup(indices.long())


class OutOfRange(GradientQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        output.indices = output.indices + 1
        return output


class EditsInEval(EMAQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        self.codebook += 1e-4
        return output


class CountsEval(EMAQuantizer):
    """Edits nothing in eval, but what it saw there enters the next training step."""

    def quantize(self, z):
        output = super().quantize(z)
        if not self.training:
            self.observe(z.detach(), self.rows(output.indices.squeeze(-1)))
        return output


class CountsEncode(EMAQuantizer):
    def encode(self, z):
        return self(z).indices


class OwnRankOnly(EMAQuantizer):
    """Moves codes to the means of this rank's vectors, as if there were no others."""

    def after_step(self, optimizers=()):
        self.pending_counts /= world()[1]
        self.pending_sums.copy_(self.pending_sums + world()[0])
        super().after_step(optimizers)


class OwnRankRevival(EMAQuantizer):
    """Revives with vectors of this rank, so that ranks drift apart."""

    def revive(self, dead, vectors):
        for group, rows in enumerate(dead):
            self.codebook[group, rows] = vectors[group, 0]


class KeepsRunningSums(EMAQuantizer):
    """Revives a code but not its running sum: the next update takes it back."""

    def revive(self, dead, vectors):
        counts, sums = self.ema_counts.clone(), self.ema_sums.clone()
        super().revive(dead, vectors)
        self.ema_counts.copy_(counts)
        self.ema_sums.copy_(sums)


class LastMicroBatch(EMAQuantizer):
    """Revives with vectors of the last micro-batch of a step."""

    def observe(self, z, rows):
        self._followed = []
        super().observe(z, rows)


class NoStraightThrough(GradientQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        output.z_q = output.z_q.detach()
        return output


class Bfloat16Search(GradientQuantizer):
    """Searches under the caller's autocast."""

    def forward(self, z):
        return self.quantize(z)

    def search(self, z):
        products = self.by_codebook(z) @ self.codebook.transpose(1, 2)
        distances = self.codebook.square().sum(-1).unsqueeze(1) - 2 * products  # (1, B N, K)
        return distances.argmin(-1).view(z.shape[:2])


class OneHot(GradientQuantizer):
    def search(self, z):
        one_hot = nn.functional.one_hot(super().search(z), self.codebook_size)
        return one_hot.argmax(-1)


class UnusedParameter(GradientQuantizer):
    def __init__(self, **options):
        super().__init__(**options)
        self.scale = nn.Parameter(torch.ones(()))


class ForgetsItBegan(GradientQuantizer):
    """Starts on the data once, by a flag that is not saved: a loaded codebook starts over."""

    began = False

    def observe(self, z, rows):
        if not self.began:
            self.codebook.data.copy_(self.by_codebook(z)[:, : self.codebook_size])
            self.began = True
        super().observe(z, rows)


class LooksAtNeighbours(GradientQuantizer):
    def search(self, z):
        return super().search(z - z.mean((0, 1)))


class MetricWithGradient(GradientQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        output.metrics["norm"] = z.norm()
        return output


class TakesAnything(GradientQuantizer):
    def forward(self, z):
        try:
            return super().forward(z)
        except ValueError:
            return QuantizerOutput(z, torch.zeros(1, 1, 1, dtype=torch.int64))


class Overflows(GradientQuantizer):
    def quantize(self, z):
        output = super().quantize(z)
        losses = codebook_losses(z, output.z_q, codebook_weight=1.0, commitment_weight=1.0)
        output.losses = {name: value / 0.0 for name, value in losses.items()}
        return output


class ReadsAValue(GradientQuantizer):
    """Asks in every step for a value, which a CPU has at once and a GPU does not."""

    def observe(self, z, rows):
        self.largest = z.abs().max().item()
        super().observe(z, rows)


class CopiesAList(GradientQuantizer):
    def search(self, z):
        return super().search(z - torch.tensor([0.0] * self.dim, device=z.device))


class StaysOnTheCPU(GradientQuantizer):
    """Keeps a tensor that is no buffer, and so is not moved with the others."""

    def __init__(self, **options):
        super().__init__(**options)
        self.shift = torch.zeros(self.dim)

    def search(self, z):
        return super().search(z + self.shift)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (LeaksVectors, "test_lookup_returns_z_q"),
        (Int32Indices, "test_indices_fit_the_levels"),
        (OutOfRange, "test_indices_fit_the_levels"),
        (EditsInEval, "test_eval_never_edits_state"),
        (CountsEval, "test_eval_never_edits_state"),
        (CountsEncode, "test_encode_in_training_leaves_no_trace"),
        (OwnRankOnly, "test_two_processes_equal_one"),
        (OwnRankRevival, "test_two_processes_equal_one"),
        (KeepsRunningSums, "test_revived_codes_survive"),
        (LastMicroBatch, "test_accumulation_equals_one_big_step"),
        (NoStraightThrough, "test_gradient_reaches_the_encoder"),
        (Bfloat16Search, "test_bf16_indices_equal_fp32_indices"),
        (OneHot, "test_memory_is_bounded"),
        (UnusedParameter, "test_every_parameter_gets_a_gradient"),
        (ForgetsItBegan, "test_save_and_load_are_identical"),
        (LooksAtNeighbours, "test_batch_of_two_equals_two_of_one"),
        (MetricWithGradient, "test_losses_are_finite_scalars"),
        (Overflows, "test_training_under_autocast_is_finite"),
        (TakesAnything, "test_wrong_shapes_are_rejected"),
        (ReadsAValue, "test_steps_never_wait_for_a_gpu"),
        (CopiesAList, "test_steps_never_wait_for_a_gpu"),
        (StaysOnTheCPU, "test_steps_never_wait_for_a_gpu"),
    ],
)
def test_broken_quantizer_is_caught(broken, check, tmp_path):
    options = small_options(broken) | SIZES
    run(QuantizerConformance, check, lambda: broken(**options), tmp_path)


class SearchesEveryLeaf(TreeQuantizer):
    """Compares each vector with all leaves, as if there were no tree."""

    def quantize(self, z):
        torch.cdist(z.detach().flatten(0, 1), self.tables()[-1])
        return super().quantize(z)


def test_a_tree_that_is_not_used_is_caught(tmp_path):
    options = SIZES | {"codebook_size": 256}
    check = "test_memory_is_bounded"
    run(QuantizerConformance, check, lambda: SearchesEveryLeaf(**options), tmp_path)


# -- tokenizers ---


class ReadsInDecode(VQVAE):
    """Asks for a value of what it decodes."""

    def decode(self, indices, num_tokens=None):
        images = super().decode(indices, num_tokens)
        self.brightest = images.max().item()
        return images


class ReadsInEncode(VQVAE):
    def encode(self, images):
        return super().encode(images[images.flatten(1).std(dim=1) >= 0])


class SkipConnection(VQVAE):
    """Feeds the decoder a little of the unquantised latents."""

    def forward(self, images):
        output = super().forward(images)
        if not self.training:
            output.reconstruction = self.decoder(
                self.token_space.to_latents(self.embed(output.indices))
                + 0.01 * self.encode_latents(images)
            )
        return output


class RemembersFeatures(VQVAE):
    """Keeps the last features of the encoder and decodes with them."""

    def encode_latents(self, images):
        self.features = super().encode_latents(images)
        return self.features

    def decode(self, indices, num_tokens=None):
        return super().decode(indices, num_tokens) + 0.01 * self.features.mean()


class LatentsSkipQuantizer(VQVAE):
    def decode_latents(self, latents):
        return self.decoder(latents)


class ScaledEmbedding(VQVAE):
    def embed(self, indices):
        return 2 * super().embed(indices)


class Int32Tokens(VQVAE):
    def encode(self, images):
        return super().encode(images).int()


class FalsePrefix(VQVAE):
    prefix = "tokens"

    def decode(self, indices, num_tokens=None):
        return super().decode(indices)


class TakesAnySize(VQVAE):
    def check_images(self, images):
        pass


class TakesAnyToken(VQVAE):
    def decode(self, indices, num_tokens=None):
        return super().decode(indices.long().clamp(0, 31).reshape(-1)[:1].expand(1, 16), num_tokens)


class FrozenEncoder(VQVAE):
    def encode_latents(self, images):
        return super().encode_latents(images).detach()


class UnusedLayer(VQVAE):
    @register_to_config
    def __init__(self, image_size: int = 16, in_channels: int = 1, codebook_size: int = 32):
        super().__init__(image_size, in_channels, codebook_size=codebook_size, channels=8)
        self.extra = nn.Linear(1, 1)


class LearnsNothing(VQVAE):
    def reconstruction_losses(self, images, reconstruction):
        return {"reconstruction": 0 * reconstruction.sum()}


class LosesOneLoss(VQVAE):
    def reconstruction_losses(self, images, reconstruction):
        return {"reconstruction": reconstruction.sum() / 0}


class OtherConfig(VQVAE):
    @register_to_config
    def __init__(self, image_size: int = 16, in_channels: int = 1, codebook_size: int = 32):
        build = inspect.unwrap(VQVAE.__init__)
        build(self, image_size, in_channels, codebook_size=codebook_size, channels=8)
        self.register_to_config(codebook_size=2 * codebook_size)


class RoundedPositions(VQVAE):
    """Has other positions where it is loaded in another precision."""

    @register_to_config
    def __init__(self, image_size: int = 16, in_channels: int = 1, codebook_size: int = 32):
        build = inspect.unwrap(VQVAE.__init__)
        build(self, image_size, in_channels, codebook_size=codebook_size, channels=8)
        self.register_buffer("positions", torch.arange(7) / 7, persistent=False)

    @classmethod
    def from_pretrained(cls, *place, **options):
        model = super().from_pretrained(*place, **options)
        if "torch_dtype" in options:
            model.positions.mul_(1.01)
        return model


class BatchStatistics(VQVAE):
    """Normalises by the mean of the batch, in training and in eval."""

    def encode_latents(self, images):
        return super().encode_latents(images - images.mean(0))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (ReadsInDecode, "test_encode_and_decode_never_wait_for_a_gpu"),
        (ReadsInEncode, "test_encode_and_decode_never_wait_for_a_gpu"),
        (SkipConnection, "test_tokens_say_everything"),
        (RemembersFeatures, "test_tokens_say_everything"),
        (LatentsSkipQuantizer, "test_latents_say_everything"),
        (ScaledEmbedding, "test_embed_is_z_q"),
        (Int32Tokens, "test_tokens_fit_the_spec"),
        (FalsePrefix, "test_prefixes_decode_as_the_spec_says"),
        (TakesAnySize, "test_wrong_images_are_rejected"),
        (TakesAnyToken, "test_wrong_tokens_are_rejected"),
        (FrozenEncoder, "test_gradient_reaches_the_encoder"),
        (UnusedLayer, "test_every_parameter_gets_a_gradient"),
        (LearnsNothing, "test_loss_falls_on_eight_images"),
        (LosesOneLoss, "test_training_under_autocast_is_finite"),
        (OtherConfig, "test_config_survives_json"),
        (RoundedPositions, "test_half_precision_loads_as_it_converts"),
        (BatchStatistics, "test_batch_of_two_equals_two_of_one"),
        (BatchStatistics, "test_accumulation_equals_one_big_step"),
    ],
)
def test_broken_tokenizer_is_caught(broken, check, tmp_path):
    options = small_options(broken)
    run(TokenizerConformance, check, lambda: broken(**options), tmp_path)


def run(suite, check, build, tmp_path):
    """Run one check and expect it to fail, for its own reason and not by accident."""
    function = getattr(type("Suite", (suite,), {})(), check)
    wanted = {"build": build, "tmp_path": tmp_path}
    with pytest.raises(CAUGHT):
        function(**{name: wanted[name] for name in inspect.signature(function).parameters})


# -- leaving checks out ---


def test_a_skip_needs_a_reason():
    with pytest.raises(ConfigError, match="needs a reason"):
        type("Suite", (QuantizerConformance,), {"skip": {"test_memory_is_bounded": " "}})


def test_a_skip_names_a_check():
    with pytest.raises(ConfigError, match="did you mean 'test_memory_is_bounded'"):
        type("Suite", (QuantizerConformance,), {"skip": {"test_memory_bounded": "too slow"}})


def test_a_listed_parameter_needs_no_gradient():
    listed = {"without_gradient": {"scale": "only used at inference"}}
    suite = type("Suite", (QuantizerConformance,), listed)
    suite().test_every_parameter_gets_a_gradient(lambda: UnusedParameter(**SIZES))
    with pytest.raises(AssertionError, match="lists \\['scale'\\]"):
        suite().test_every_parameter_gets_a_gradient(lambda: GradientQuantizer(**SIZES))


def test_checks_are_collected_skipped_and_asked_to_be_set_up(pytester):
    pytester.makepyfile(
        """
        import pytest
        from spectok.testing import QuantizerConformance
        from spectok.testing.small import small_quantizer

        class TestGood(QuantizerConformance):
            skip = {"test_two_processes_equal_one": "one process is enough here"}

            @pytest.fixture
            def build(self):
                return lambda: small_quantizer("ema")

        class TestWithoutFixture(QuantizerConformance):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-k", "lookup or two_processes", "-rs")
    result.assert_outcomes(passed=1, skipped=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*one process is enough here*",
        ]
    )
