"""Failing a check, with a message that says what was found and what the contract is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from spectok.errors import InputError


def expect(condition: bool | Tensor, message: str) -> None:
    """Fail a check with a message that says what was found and what the contract is.

    Raises:
        AssertionError: If the condition does not hold. Unlike ``assert`` it is never compiled away.
    """
    if not condition:
        raise AssertionError(message)


def expect_refusal(function: Callable[[], Any], *fragments: str) -> None:
    """Expect an :class:`InputError` whose message contains each fragment."""
    try:
        function()
    except InputError as error:
        missing = [part for part in fragments if part not in str(error)]
        expect(not missing, f"the message does not say {', '.join(missing)}: {error}")
    except Exception as error:
        raise AssertionError(
            f"raises {type(error).__name__} where an InputError should say what fits: {error}"
        ) from error
    else:
        raise AssertionError(f"accepts what it should refuse: no {', '.join(fragments)}")
