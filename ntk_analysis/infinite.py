"""`infinite_kernel`: from inputs to the NNGP and NTK of an infinitely wide network."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.inputs import channel_distance, rounding_error, unit_vectors, vector_distance
from ntk_analysis.kernel import Kernel
from ntk_analysis.memory import require_memory
from ntk_analysis.precision import AnyArray, float_array, is_traced, numpy_in_float64

# arrays of the kernel's size that are alive at once while convolutions are computed: most that XLA was seen to hold is
# 20 at equal positions (residual blocks) and 10 at all pairs; a quadrature's nodes come on top
ARRAYS = {"equal": 16, "paired": 12}


@runtime_checkable
class HasKernel(Protocol):
    """Anything that maps the kernel of its inputs to the kernel of its outputs; hashable, as every layer is."""

    def kernel(self, kernel: Kernel) -> Kernel: ...

    @property
    def pairs_positions(self) -> bool:
        """Whether images need all pairs of positions, not equal positions only."""


@numpy_in_float64
def infinite_kernel(
    network: HasKernel, x1: Float[AnyArray, "n1 *features"], x2: Float[AnyArray, "n2 *features"] | None = None
) -> Kernel:
    """NNGP and NTK of an infinitely wide network between inputs x1 and x2 (x2 = None: x1 with itself).

    Works under jit, grad and vmap. NumPy float64 inputs are computed and returned in float64 whatever JAX's flag.
    Inputs are not rescaled: the first dense layer's kernel is w_var x.x'/d + b_var, d the number of features.
    Duplicated inputs are legal (their rows are equal, to the last bit of the distance, and the kernel is singular); an
    input of zeros has variance 0 and, without biases, a kernel of 0 with everything.

    The kernel of a batch-normalised network is that of ONE joint batch, x1 with itself.

    Args:
        network: a layer or a composition of layers.
        x1: (n1, d) vectors, or (n1, height, width, channels) images, float32 or float64.
        x2: (n2, ...) inputs of the same features and dtype, or None.

    Raises:
        ValueError: wrong shapes, no inputs, NaN or infinite inputs; a batch too small for its batch normalisation.
        OverflowError: the pre-activation variance left the dtype's range (a gain too large for the depth).
        MemoryError: the kernel of images of this size, at equal or at all pairs of positions, does not fit.
        NotImplementedError: the network has a layer without an infinite-width kernel here; the message says why.
    """
    first = _checked(x1, "x1")
    second = None if x2 is None else _checked(x2, "x2")
    if second is not None and (second.shape[1:] != first.shape[1:] or second.dtype != first.dtype):
        raise ValueError(
            f"x2 must have the features and the dtype of x1: got {second.shape[1:]} {second.dtype} against "
            f"{first.shape[1:]} {first.dtype}"
        )
    if first.ndim == 4:
        _check_memory(network, first, first if second is None else second)
    kernel = _propagate(network, first, second)
    if not is_traced(kernel):
        _check_finite(kernel)
    return kernel


def _propagate_eagerly(network: HasKernel, x1: jax.Array, x2: jax.Array | None) -> Kernel:
    return network.kernel(input_kernel(x1, x2, paired=network.pairs_positions))


_propagate = jax.jit(_propagate_eagerly, static_argnums=0)


def _checked(x: Any, name: str) -> jax.Array:
    array = float_array(x)
    if array.ndim not in (2, 4):
        raise ValueError(
            f"{name} must have shape (inputs, features) or (inputs, height, width, channels), got {array.shape}: "
            "flatten images with x.reshape(len(x), -1), give grey ones a channel with x[..., None]"
        )
    if 0 in array.shape:
        raise ValueError(f"{name} holds no inputs: got shape {array.shape}")
    if not is_traced(array) and not bool(jnp.all(jnp.isfinite(array))):
        bad = np.flatnonzero(~np.isfinite(np.asarray(array).reshape(len(array), -1)).all(axis=1))
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(array)} inputs, first in row {bad[0]}"
        )
    return array


def _check_memory(network: HasKernel, x1: jax.Array, x2: jax.Array) -> None:
    (n1, height, width, _), n2 = x1.shape, len(x2)
    places = height * width
    pairs = n1 * n2 * places**2 + (n1 + n2) * places**2 if network.pairs_positions else n1 * n2 * places
    kept = "all pairs of positions, for a pooling read-out" if network.pairs_positions else "equal positions"
    require_memory(
        ARRAYS["paired" if network.pairs_positions else "equal"] * pairs * x1.dtype.itemsize,
        f"the kernel of {n1} x {n2} images of {height} x {width} at {kept},",
        "use fewer images at a time, smaller images" + ", or a flattening read-out" * network.pairs_positions,
    )


def _check_finite(kernel: Kernel) -> None:
    if not all(bool(jnp.all(jnp.isfinite(q))) for q in (kernel.variance1, kernel.variance2)):
        raise OverflowError(
            f"a pre-activation variance left {kernel.variance1.dtype}'s range: gain or inputs are too large; "
            "use the stable gain (w_var=None), a smaller w_var, fewer layers, or inputs of |x|^2 = d"
        )
    if any(bool(jnp.any(jnp.isnan(values))) for values in (kernel.distance, kernel.ntk_scaled)):
        raise ValueError(
            f"the kernel of this batch of {len(kernel.variance1)} is not finite: at eps = 0 a batch normalisation has "
            "one only if the centred covariance of its inputs has rank >= 3 and no input lies at the mean of the "
            "batch; use at least 4 distinct inputs, more of them, or eps > 0"
        )


def input_kernel(
    x1: Float[jax.Array, "n1 *features"], x2: Float[jax.Array, "n2 *features"] | None = None, *, paired: bool = False
) -> Kernel:
    """Kernel of the raw inputs: x.x'/d over the features, or over the channels at each position; no NTK yet.

    Args:
        x1: (n1, d) or (n1, height, width, channels).
        x2: the second inputs, or None.
        paired: whether images keep all pairs of positions.
    """
    other = x1 if x2 is None else x2
    unit1, unit2 = unit_vectors(x1), unit_vectors(other)
    within1 = within2 = None
    if x1.ndim == 2:
        distance = vector_distance(unit1, unit2, same=x2 is None)
    elif paired:
        distance = channel_distance(unit1[:, None, :, :, None, None], unit2[None, :, None, None])
        within1, within2 = (channel_distance(u[:, :, :, None, None], u[:, None, None]) for u in (unit1, unit2))
    else:
        distance = channel_distance(unit1[:, None], unit2[None])
    variance1, variance2 = jnp.mean(x1**2, axis=-1), jnp.mean(other**2, axis=-1)
    return Kernel(
        variance1=variance1,
        variance2=variance2,
        distance=distance,
        mean1=jnp.zeros_like(variance1),
        mean2=jnp.zeros_like(variance2),
        ntk_scaled=jnp.zeros_like(distance),
        log_scale=jnp.zeros((), distance.dtype),
        relative_error=rounding_error(jax.lax.stop_gradient(distance)),
        law="inputs",
        joint=x2 is None,
        within1=within1,
        within2=within2,
    )
