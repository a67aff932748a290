"""Checks for tokenizers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectok.metrics import split_by_codebook
from spectok.quantizers import outermost_quantizers
from spectok.recipes.options import validate_options
from spectok.testing.base import Build, Conformance
from spectok.testing.expect import expect, expect_refusal
from spectok.testing.learners import ImageLearner, fit, train
from spectok.testing.pretend import PretendDevice
from spectok.token_spec import TokenSpec
from spectok.tokenizer import ImageTokenizer

CHECKS = (
    *("spectok/images.py:", "spectok/token_spec.py:", "spectok/tokenizer.py:"),
    "quantizers/contract.py:",
)
"""Where what goes in and comes out is checked, and values are read for that."""


class TokenizerConformance(Conformance[ImageLearner]):
    """Every check a tokenizer must pass; subclass it and define the fixture ``build``.

    Attributes:
        fit_steps: Number of steps within which the error on eight images must fall by a fifth.
        fit_learning_rate: Adam's learning rate in those steps.
    """

    fit_steps: ClassVar[int] = 40
    fit_learning_rate: ClassVar[float] = 5e-3

    def learner(self, build: Build) -> ImageLearner:
        """Train the tokenizer on its own losses."""
        return ImageLearner(build())

    def outputs(self, model: ImageTokenizer, batch: Tensor) -> list[Tensor]:
        """Return tokens and reconstruction."""
        with torch.no_grad():
            output = model.eval()(batch)
        return [output.indices, output.reconstruction]

    def save_and_load(self, model: ImageTokenizer, build: Build, folder: Path) -> ImageTokenizer:
        """Save with ``save_pretrained`` and load with ``from_pretrained``."""
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder)

    def without_random_draws(self, model: ImageTokenizer) -> None:
        """Train on whole sequences; random prefixes are drawn once per micro-batch."""
        model.draw_prefix = _whole_sequences  # type: ignore[method-assign]

    # -- the contract of encode and decode ---

    def test_tokens_fit_the_spec(self, build: Build) -> None:
        """``encode`` gives int64 ``(B, T)`` that fits the TokenSpec; ``decode`` gives images."""
        learner = self.fresh(build)
        model, images = learner.model.eval(), learner.batch(3)
        indices = model.encode(images)
        model.token_spec.validate(indices)
        expect(TokenSpec.from_dict(model.token_spec.to_dict()) == model.token_spec, "spec and JSON")
        decoded = model.decode(indices).shape
        expect(decoded == images.shape, f"decode gives {tuple(decoded)}, not {tuple(images.shape)}")
        latents = model.encode_latents(images).shape[1:]
        expect(
            tuple(latents) == tuple(model.latent_shape),
            f"latents are {tuple(latents)}, but latent_shape says {tuple(model.latent_shape)}",
        )

    def test_code_tables_fit_the_spec(self, build: Build) -> None:
        """``code_tables`` has all codebooks of each level, or None where codes are no vectors."""
        model = self.fresh(build).model
        spec = model.token_spec
        counts = split_by_codebook(spec, torch.zeros(spec.num_codes))
        tables = model.code_tables
        expect(len(tables) == len(counts), f"{len(tables)} code tables for {len(counts)} levels")
        for number, (table, level) in enumerate(zip(tables, counts)):
            shape = None if table is None else tuple(table.shape[:2])
            expect(
                shape in (None, tuple(level.shape)),
                f"code table {number} is {shape}, but the level has {tuple(level.shape)}",
            )

    def test_tokens_say_everything(self, build: Build) -> None:
        """In eval mode ``decode(encode(x))`` is the reconstruction: nothing else feeds the decoder.

        Other images are encoded in between, then the encoder's weights are overwritten, to expose
        features kept from the last encoding and weights shared with the encoder.
        """
        learner = self.fresh(build)
        train(learner, [[learner.batch(4)] for _ in range(2)])
        model, images = learner.model.eval(), learner.batch(2)
        with torch.no_grad():
            reconstruction = model(images).reconstruction
            indices = model.encode(images)
            model.encode(learner.batch(2))
            decoded = model.decode(indices)
            self._expect_images(decoded, reconstruction, "decode(encode(x)) and the reconstruction")
            for parameter in model.encoder.parameters():
                parameter.normal_()
            again = model.decode(indices)
        expect(torch.equal(again, decoded), "decode(indices) depends on the encoder's weights")

    def test_latents_say_everything(self, build: Build) -> None:
        """In eval mode ``decode_latents(encode_latents(x))`` is the reconstruction."""
        learner = self.fresh(build)
        model, images = learner.model.eval(), learner.batch(2)
        with torch.no_grad():
            decoded = model.decode_latents(model.encode_latents(images))
            self._expect_images(decoded, model(images).reconstruction, "decode_latents")

    def test_embed_is_z_q(self, build: Build) -> None:
        """``embed(indices)`` returns the quantizer's output for the image."""
        learner = self.fresh(build)
        model, images, made = learner.model.eval(), learner.batch(2), []
        for quantizer in outermost_quantizers(model):
            quantizer.register_forward_hook(lambda _module, _args, output: made.append(output.z_q))
        with torch.no_grad():
            indices = model(images).indices
            expect(
                torch.equal(model.embed(indices), torch.cat(made, dim=1)), "embed differs from z_q"
            )

    def test_prefixes_decode_as_the_spec_says(self, build: Build) -> None:
        """A decodable prefix decodes without the tokens after it; other lengths are refused."""
        learner = self.fresh(build)
        model, spec = learner.model.eval(), learner.model.token_spec
        indices = model.encode(learner.batch(2))
        others = (indices + 1) % torch.tensor(spec.vocab_sizes)
        with torch.no_grad():
            for k in {
                spec.decodable_prefixes[i] for i in (0, len(spec.decodable_prefixes) // 2, -1)
            }:
                changed = torch.cat([indices[:, :k], others[:, k:]], dim=1)
                same = torch.equal(model.decode(indices, k), model.decode(changed, k))
                expect(same, f"decoding {k} tokens depends on the tokens after them")
            whole = model.decode(indices, spec.num_tokens)
            self._expect_images(whole, model.decode(indices), "decoding T tokens and all tokens")
        for k in {-1, 1, spec.num_tokens - 1, spec.num_tokens + 1} - set(spec.decodable_prefixes):
            expect_refusal(functools.partial(model.decode, indices, k), str(k))

    def test_encode_and_decode_never_wait_for_a_gpu(self, build: Build) -> None:
        """On a GPU, all that is read in ``encode`` and ``decode`` is what spectok itself checks.

        Shown without a GPU; see :mod:`spectok.testing.pretend`. A first call may copy constants.
        """
        learner = self.fresh(build)
        model, images = learner.model.eval(), learner.batch(2)
        prefixes = (None, model.token_spec.decodable_prefixes[0])
        with PretendDevice("cuda") as gpu, torch.no_grad():
            batch = images.to("cuda")
            model.to("cuda")
            for _ in range(2):
                gpu.events.clear()
                indices = model.encode(batch)
                for k in prefixes:
                    model.decode(indices, k)
        waits = [str(event) for event in gpu.events if not event.place.startswith(CHECKS)]
        expect(
            not waits,
            f"encode and decode wait for the GPU: {'; '.join(dict.fromkeys(waits))}; compute it on "
            f"the device",
        )

    def test_wrong_images_are_rejected(self, build: Build) -> None:
        """Images of wrong size, channels or type are refused; the message names what was given."""
        learner = self.fresh(build)
        channels, height, width = learner.model.image_shape
        for shape in ((1, channels, height + 1, width), (1, channels + 1, height, width)):
            for function in (learner.model, learner.model.encode):
                refused = functools.partial(function, torch.zeros(shape))
                expect_refusal(refused, str(shape), f"{channels}, {height}, {width}")
        right = torch.zeros(2, channels, height, width)
        expect_refusal(functools.partial(learner.model.encode, right.byte()), "uint8")
        expect_refusal(functools.partial(learner.model.encode, right[:0]), "empty")

    def test_wrong_tokens_are_rejected(self, build: Build) -> None:
        """Tokens out of range, of wrong length or of wrong type are refused."""
        model = self.fresh(build).model.eval()
        spec = model.token_spec
        good = torch.zeros(1, spec.num_tokens, dtype=torch.int64)
        limits = torch.tensor([spec.vocab_sizes])
        for bad in (good + limits, good - 1, good[:, 1:], good.int()):
            expect_refusal(functools.partial(model.decode, bad))

    # -- training ---

    def test_gradient_reaches_the_encoder(self, build: Build) -> None:
        """The reconstruction alone sends a gradient through the quantizer to the encoder."""
        learner = self.fresh(build)
        reconstruction = learner.model(learner.batch(4)).reconstruction
        (reconstruction * torch.randn(reconstruction.shape)).sum().backward()
        for name, parameter in learner.model.encoder.named_parameters():
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            expect(reached, f"no gradient of the reconstruction reaches encoder.{name}")

    def test_loss_falls_on_eight_images(self, build: Build) -> None:
        """The reconstruction error on eight images falls by a fifth."""
        learner = self.fresh(build)
        images = learner.batch(8)
        before, after = fit(learner, images, self.fit_steps, self.fit_learning_rate)
        expect(
            after < 0.8 * before,
            f"the squared error went from {before:.4f} to {after:.4f} in {self.fit_steps} steps",
        )

    def test_training_under_autocast_is_finite(self, build: Build) -> None:
        """A training step under bfloat16 autocast has finite losses and gradients."""
        learner = self.fresh(build)
        with torch.autocast("cpu", torch.bfloat16):
            losses = learner(learner.batch(4)).losses
        for name, value in losses.items():
            expect(value.ndim == 0 and bool(value.isfinite()), f"loss {name} is {value}")
        torch.stack([value.float() for value in losses.values()]).sum().backward()
        for name, parameter in learner.model.named_parameters():
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            expect(finite, f"the gradient of {name} is not finite")

    def test_config_survives_json(self, build: Build) -> None:
        """The config is plain JSON, fits the constructor's schema, and builds an equal model."""
        model = self.fresh(build).model
        config = {k: v for k, v in model.config.items() if not k.startswith("_")}
        again = json.loads(json.dumps(config))
        rebuilt = type(model)(**validate_options(type(model), again, "config"))
        expect(
            json.dumps(dict(rebuilt.config)) == json.dumps(dict(model.config)),
            "a model built from its own config has another config",
        )
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        rebuilt_shapes = {name: value.shape for name, value in rebuilt.state_dict().items()}
        expect(shapes == rebuilt_shapes, "a model built from its own config has other weights")

    def test_half_precision_loads_as_it_converts(self, build: Build, tmp_path: Path) -> None:
        """Loading in bfloat16 gives what converting does, buffers that are not saved included."""
        model = self.fresh(build).model
        model.save_pretrained(tmp_path)
        converted = type(model).from_pretrained(tmp_path).to(torch.bfloat16)
        loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        for of in (nn.Module.named_parameters, nn.Module.named_buffers):
            wanted = dict(of(converted))
            for name, found in of(loaded):
                same = found.dtype == wanted[name].dtype and torch.equal(found, wanted[name])
                expect(same, f"{name} is another when it is loaded in bfloat16")

    def _expect_images(self, found: Tensor, wanted: Tensor, what: str) -> None:
        apart = (found - wanted).abs().max().item()
        limit = 1e-6 * max(1.0, wanted.abs().max().item())
        expect(
            apart <= limit, f"{what} differ by {apart:.3g}: more than tokens reaches the decoder"
        )


def _whole_sequences(batch_size: int) -> Any:
    return None
