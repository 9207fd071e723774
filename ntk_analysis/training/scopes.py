"""Names of the parts of a network in its traced program, by which its memory is counted."""

from contextlib import AbstractContextManager

import jax

RELU = "ReLU"
POOLING = "pooling"


def scope(kind: str) -> AbstractContextManager[None]:
    """A context: arrays that its operations keep count as this kind."""
    return jax.named_scope(f"<{kind}>")
