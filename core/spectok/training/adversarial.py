"""Training a tokenizer against a discriminator, exactly, however a batch is split.

The adaptive weight of VQGAN is a ratio of the lengths of two gradients. Taken in each micro-batch
and on each process by itself, it would make four small batches another training than one large one.
So the gradient of the generator's term is kept apart, summed over micro-batches and processes, and
added with a weight that comes from the sums, before clipping. It costs no more than the usual form,
which goes back through the discriminator twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectok import registry
from spectok.distributed import sum_over_ranks, world
from spectok.errors import ConfigError
from spectok.losses import adaptive_weight, hinge_discriminator, hinge_generator
from spectok.schema import validate_named
from spectok.tokenizer import ImageTokenizer
from spectok.training.batches import derive_seed
from spectok.training.contracts import Phase, StepOutput
from spectok.training.loss_config import AdversarialConfig

GENERATOR = "generator"
RECONSTRUCTION_TERMS = ("reconstruction", "l1", "l2", "perceptual")


class Pair(nn.Module):
    """A discriminator that looks at images and reconstructions in one call.

    Data parallelism prepares for one backward pass at each call, and here two belong to one.

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
        InputError: If the images do not suit it.
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
        """Return reconstructions where the tokenizer is not trained: in eval mode."""
        self.model.eval()
        reconstruction = self.model(images).reconstruction
        self.model.train()
        return reconstruction

    def oppose(self, result: StepOutput, reconstruction: Float[Tensor, "b c h w"]) -> None:
        """Add the generator's term to a tokenizer's losses, or keep its gradient apart."""
        term = hinge_generator(self.pair.network(reconstruction))
        if not self.config.adaptive:
            result.losses[GENERATOR] = self.config.weight * term
            return
        result.apart[GENERATOR] = term.detach()
        balanced = torch.stack([result.losses[name] for name in self.balance(result.losses)]).sum()
        with torch.autocast(reconstruction.device.type, enabled=False):
            self.collect(term / self.accumulation, balanced / self.accumulation)

    def collect(self, generator: Tensor, balanced: Tensor) -> None:
        """Add the gradients of one micro-batch to those of the step."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(generator, parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:  # the codebook takes none through the straight-through step
                before = self._generator.get(parameter)
                self._generator[parameter] = gradient if before is None else before + gradient
        (reference,) = torch.autograd.grad(balanced, self.model.last_layer, retain_graph=True)
        self._reference = reference if self._reference is None else self._reference + reference

    def before_step(self) -> dict[str, Tensor]:
        """Add the generator's gradient, weighted, to that of the tokenizer's other terms.

        Returns:
            The weight, for the log.
        """
        if self._reference is None:
            return {}
        sums = sum_over_ranks(self._reference, *self._generator.values())
        reference, *gradients = [total / world()[1] for total in sums]
        own = dict(zip(self._generator, gradients))
        ratio = adaptive_weight(reference, own[self.model.last_layer], self.config.epsilon)
        weight = self.config.weight * ratio
        for parameter, gradient in own.items():
            parameter.grad = weight * gradient + (0 if parameter.grad is None else parameter.grad)
        self._generator, self._reference = {}, None
        return {"adaptive_weight": weight}

    def balance(self, names: Mapping[str, Any] | list[str]) -> list[str]:
        """Return the terms whose gradient the generator's is measured by."""
        if self.config.balance is not None:
            return list(self.config.balance)
        return [name for name in RECONSTRUCTION_TERMS if name in names]

    def check_balance(self, names: list[str]) -> None:
        """Check that the terms to balance will be there.

        Raises:
            ConfigError: Names the one that is not, and those that are.
        """
        if not self.config.adaptive:
            return
        chosen = self.balance(names)
        for name in chosen or ["reconstruction"]:
            if name not in names:
                raise ConfigError(
                    f"adversarial.balance: {name!r} is not a term when the discriminator begins; "
                    f"there are {', '.join(names)}: name some of these, or set "
                    f"adversarial.adaptive=false"
                )


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
