"""Whether a function is the same at every call, as JAX needs it: no counter, no clock, no random numbers of NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_pure(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether the function, traced twice at these arguments (arrays or shapes), gives one program and the same numbers.

    What a function changes when it runs, and reads only then, is not seen: JAX does not run it but its program.
    """
    first, second = (jax.make_jaxpr(lambda *given: function(*given))(*arguments) for _ in range(2))
    if str(first) != str(second) or len(first.consts) != len(second.consts):
        return False
    return all(_equal(one, other) for one, other in zip(first.consts, second.consts, strict=True))


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if jnp.issubdtype(jnp.result_type(one), jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
