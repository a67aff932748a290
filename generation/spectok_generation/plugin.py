"""What the generation layer registers: priors and commands."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_priors() -> dict[str, type[Any]]:
    """Register the priors."""
    from spectok_generation.priors.gpt import GPT

    return {"gpt": GPT}
