"""Training a tokenizer against a discriminator, the same however a batch is split.

VQGAN's adaptive weight is the ratio of the norms of two gradients. If each micro-batch and each
process took its own ratio, four small batches would train differently from one large one. Here both
gradients are means over the whole batch of a step. If a step is a single micro-batch, that costs
one small sum over processes. If it is several, the weight is known only after the last one: the
gradient of the generator's term is kept apart until then and added before clipping, at the cost of
a second backward pass through the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectok.distributed import sum_over_ranks, world
from spectok.errors import ConfigError
from spectok.losses import adaptive_weight, hinge_discriminator, hinge_generator
from spectok.plugins import registry
from spectok.recipes.options import validate_named
from spectok.tokenizer import ImageTokenizer
from spectok.training.batches import derive_seed
from spectok.training.contracts import Phase, StepOutput
from spectok.training.loss_config import AdversarialConfig

GENERATOR = "generator"
RECONSTRUCTION_TERMS = ("reconstruction", "l1", "l2", "perceptual")


class Pair(nn.Module):
    """A discriminator that sees images and reconstructions in one call.

    Data parallelism expects one backward pass per call; two calls would share one.

    Args:
        network: Takes images to logits.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both."""
        return self.network(real), self.network(fake)


class Adversary:
    """The discriminator's part in a tokenizer's training.

    Args:
        config: How to train against it.
        model: The tokenizer, unwrapped.
        accumulation: Micro-batches per optimiser step.
        seed: Decides the discriminator's initial weights.

    Raises:
        ConfigError: If an option of the discriminator is wrong.
        InputError: If the discriminator cannot take images of this shape.
    """

    def __init__(
        self, config: AdversarialConfig, model: ImageTokenizer, accumulation: int, seed: int
    ):
        self.config, self.model, self.accumulation = config, model, accumulation
        self.pair = Pair(build_discriminator(config.discriminator, model.image_shape, seed))
        self._generator: dict[Tensor, Tensor] = {}
        self._reference: Tensor | None = None

    @property
    def phase(self) -> Phase:
        """The discriminator's phase of the training loop."""
        config = self.config
        return Phase(
            "discriminator",
            self.pair,
            self.judge,
            config.start_step,
            config.alternate,
            config.learning_rate,
        )

    def judge(self, pair: nn.Module, batch: dict[str, Any], shared: Any) -> StepOutput:
        """Return the discriminator's losses on images and their reconstructions."""
        fake = self.reconstruct(batch["images"]) if shared is None else shared.reconstruction
        real_logits, fake_logits = pair(batch["images"], fake.detach())
        metrics = {"real": real_logits.detach().mean(), "fake": fake_logits.detach().mean()}
        return StepOutput({"hinge": hinge_discriminator(real_logits, fake_logits)}, metrics)

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return reconstructions in eval mode, for a step that does not train the tokenizer."""
        self.model.eval()
        reconstruction = self.model(images).reconstruction
        self.model.train()
        return reconstruction

    def oppose(self, result: StepOutput, reconstruction: Float[Tensor, "b c h w"]) -> None:
        """Add the generator's term to a tokenizer's losses.

        With an adaptive weight, the value that is logged is that of the unweighted term, and the
        gradient is that of the weighted one. Where micro-batches are accumulated, the gradient is
        zero until :meth:`before_step` adds it.
        """
        term = hinge_generator(self.pair.network(reconstruction))
        if not self.config.adaptive:
            result.losses[GENERATOR] = self.config.weight * term
            return
        balanced = torch.stack([result.losses[name] for name in self.balance(result.losses)]).sum()
        with torch.autocast(reconstruction.device.type, enabled=False):
            (pull,) = torch.autograd.grad(term, reconstruction)  # once through the discriminator
            last = self.model.last_layer
            (reference,) = torch.autograd.grad(balanced, last, retain_graph=True)
            if self.accumulation > 1:
                self.collect(reference, reconstruction, pull)
                result.losses[GENERATOR] = term.detach()
                return
            (own,) = torch.autograd.grad(reconstruction, last, pull, retain_graph=True)
            weight = self.weigh(*mean_over_ranks(reference, own))
            pulled = (weight * pull * reconstruction).sum()
            result.losses[GENERATOR] = term.detach() + (pulled - pulled.detach())
            result.metrics["adaptive_weight"] = weight

    def collect(self, reference: Tensor, reconstruction: Tensor, pull: Tensor) -> None:
        """Add the gradients of one micro-batch to those of the step.

        Args:
            reference: Gradient of the terms in ``balance`` at the last layer.
            reconstruction: Where the backward pass starts.
            pull: Gradient of the generator's term with respect to the reconstruction.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(
            reconstruction, parameters, pull, retain_graph=True, allow_unused=True
        )
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:  # the codebook gets none: straight-through
                self._generator[parameter] = gradient + self._generator.get(parameter, 0)
        self._reference = reference + (0 if self._reference is None else self._reference)

    def before_step(self) -> dict[str, Tensor]:
        """Add the collected gradient, weighted, to that of the tokenizer's other terms.

        Returns:
            The weight, for the log.
        """
        if self._reference is None:
            return {}
        sums = (self._reference, *self._generator.values())
        reference, *means = mean_over_ranks(*(total / self.accumulation for total in sums))
        generator = dict(zip(self._generator, means))
        weight = self.weigh(reference, generator[self.model.last_layer])
        for parameter, gradient in generator.items():
            parameter.grad = weight * gradient + (0 if parameter.grad is None else parameter.grad)
        self._generator, self._reference = {}, None
        return {"adaptive_weight": weight}

    def weigh(self, reference: Tensor, generator: Tensor) -> Tensor:
        """Return the weight of the generator's term, from two gradients at the last layer."""
        return self.config.weight * adaptive_weight(reference, generator, self.config.epsilon)

    def balance(self, names: Mapping[str, Any] | list[str]) -> list[str]:
        """Return the terms whose gradient sets the scale of the generator's."""
        if self.config.balance is not None:
            return list(self.config.balance)
        return [name for name in RECONSTRUCTION_TERMS if name in names]

    def check_balance(self, names: list[str]) -> None:
        """Check that the terms in ``balance`` exist when the discriminator begins.

        Raises:
            ConfigError: Names the one that does not, and those that do.
        """
        if not self.config.adaptive:
            return
        chosen = self.balance(names)
        for name in chosen or ["reconstruction"]:
            if name not in names:
                raise ConfigError(
                    f"adversarial.balance: {name!r} is not a term when the discriminator begins; "
                    f"the terms then are {', '.join(names)}: name some of them, or set "
                    f"adversarial.adaptive=false"
                )


def mean_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Return the means of float32 tensors over all processes."""
    return [total / world()[1] for total in sum_over_ranks(*tensors)]


def build_discriminator(
    option: str | dict[str, Any], image_shape: tuple[int, int, int], seed: int
) -> nn.Module:
    """Build a registered discriminator with seeded weights, leaving the global random state alone.

    Args:
        option: A name, or a mapping with ``name`` and options.
        image_shape: ``(C, H, W)`` of the images.
        seed: Seed of the run.
    """
    options = validate_named("discriminator", option, "adversarial.discriminator")
    network = registry.get_registered("discriminator", options.pop("name"))
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 4))
        return network(image_shape=tuple(image_shape), **options)
