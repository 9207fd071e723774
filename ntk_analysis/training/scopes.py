"""Names of the parts of a network in its traced program, by which its memory is counted."""

from typing import Any

import jax

RELU = "ReLU"
POOLING = "pooling"


def scope(kind: str) -> Any:
    """A context: arrays that its operations keep count as this kind."""
    return jax.named_scope(f"<{kind}>")
