"""How long computations tell of their steps: a function that draws progress bars, or none."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Track: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]
"""Function track(steps, description) that gives the steps, with or without a progress bar; the steps have a length."""


def untracked(steps: Iterable[Any], description: str) -> Iterable[Any]:
    """The steps themselves: a `Track` that draws no progress bar."""
    del description
    return steps
