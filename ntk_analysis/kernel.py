"""Kernel, the state that flows through an infinitely wide network, and `infinite_kernel`, which sends it through."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.gaussian import into_range, safe_divide
from ntk_analysis.gram import Covariance
from ntk_analysis.precision import AnyArray, HeldArray, float_array, is_traced, numpy_in_float64

Law: TypeAlias = Literal["inputs", "gaussian", "activated"]

NEAR = 0.01  # cosine distances below this are measured from the difference of the unit vectors
LARGEST_SCALED_NTK = 2.0**40  # the NTK is rescaled before it leaves this range; float32 still holds its square


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """NNGP and NTK between n1 and n2 inputs at one layer of an infinitely wide network.

    The NNGP is kept as variances and cosine distances (1 - correlation), which hold their digits where a covariance
    matrix has lost them; the NTK is kept as `ntk_scaled` * exp(`log_scale`), so that a depth of 10,000 neither
    overflows nor loses its ratios. All arrays share one floating dtype.

    Attributes:
        variance1: (n1,) variance of each unit on the first inputs (second moment, after an activation).
        variance2: (n2,) the same on the second inputs.
        distance: (n1, n2) cosine distance 1 - correlation, uncentred after an activation.
        mean1: (n1,) mean across channels, which weight centering removes.
        mean2: (n2,) the same on the second inputs.
        ntk_scaled: (n1, n2) NTK times exp(-log_scale).
        log_scale: scalar; 0 until the NTK has grown beyond 2^40.
        relative_error: scalar estimate of the largest relative error of `distance` over pairs of different inputs,
            from rounding of the inputs, of every layer, and from quadrature. 0.01 means that an angle has two digits
            for some pair of near-duplicates, in this dtype; above 1, that some pair cannot be told apart in direction.
        law: what the units are: "inputs", "gaussian" pre-activations, or "activated" (no Gaussian any more).
    """

    variance1: Float[HeldArray, " n1"]
    variance2: Float[HeldArray, " n2"]
    distance: Float[HeldArray, "n1 n2"]
    mean1: Float[HeldArray, " n1"]
    mean2: Float[HeldArray, " n2"]
    ntk_scaled: Float[HeldArray, "n1 n2"]
    log_scale: HeldArray
    relative_error: HeldArray
    law: Law = field(metadata={"static": True})

    @property
    def covariance(self) -> Covariance:
        """The NNGP as columns against rows, (n1, 1), (1, n2) and (n1, n2)."""
        return Covariance(self.variance1[:, None], self.variance2[None, :], self.distance)

    @property
    @numpy_in_float64
    def nngp(self) -> Float[HeldArray, "n1 n2"]:
        """NNGP kernel (n1, n2): covariance of the units, or their second moment after an activation."""
        return Covariance(*map(float_array, self.covariance)).value

    @property
    def ntk(self) -> Float[HeldArray, "n1 n2"]:
        """NTK (n1, n2), its true value, for unit-variance NTK parametrisation and one output.

        Raises:
            OverflowError: the value does not fit the dtype; `ntk_scaled` and `log_scale` always do.
        """
        if not is_traced(self.ntk_scaled, self.log_scale):
            limit = math.log(float(np.finfo(self.ntk_scaled.dtype).max))
            largest = float(np.max(np.abs(self.ntk_scaled)))
            magnitude = float(self.log_scale) + (math.log(largest) if largest > 0 else -math.inf)
            if magnitude >= limit:
                raise OverflowError(
                    f"the NTK reaches exp({magnitude:.1f}), more than {self.ntk_scaled.dtype} holds "
                    f"(exp({limit:.1f})): use .ntk_scaled and .log_scale (ntk = ntk_scaled * exp(log_scale)); "
                    "spectrum does so by itself"
                )
        return self._unscaled_ntk()

    @numpy_in_float64
    def _unscaled_ntk(self) -> Float[HeldArray, "n1 n2"]:
        # in two halves: exp(log_scale) alone may overflow where the product does not
        half = jnp.exp(float_array(self.log_scale) / 2)
        return float_array(self.ntk_scaled) * half * half

    def smallest_eigenvalue(self, which: Literal["nngp", "ntk"] = "ntk") -> float:
        """Smallest eigenvalue of the NNGP or of the scaled NTK (times exp(log_scale) for the true one), in float64.

        The kernel must be square and symmetric: computed with x2 = None.
        """
        matrix = np.asarray(self.nngp if which == "nngp" else self.ntk_scaled, np.float64)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"eigenvalues need a square kernel (x2 = None), got shape {matrix.shape}")
        return float(np.linalg.eigvalsh(matrix)[0])


@runtime_checkable
class HasKernel(Protocol):
    """Anything that maps the kernel of its inputs to the kernel of its outputs; hashable, as every layer is."""

    def kernel(self, kernel: Kernel) -> Kernel: ...


@numpy_in_float64
def infinite_kernel(
    network: HasKernel, x1: Float[AnyArray, "n1 d"], x2: Float[AnyArray, "n2 d"] | None = None
) -> Kernel:
    """NNGP and NTK of an infinitely wide network between inputs x1 and x2 (x2 = None: x1 with itself).

    Works under jit, grad and vmap. NumPy float64 inputs are computed and returned in float64 whatever JAX's flag.
    Inputs are not rescaled: the first dense layer's kernel is w_var x.x'/d + b_var, d the number of features.
    Duplicated inputs are legal (their rows are equal, to the last bit of the distance, and the kernel is singular); an
    input of zeros has variance 0 and, without biases, a kernel of 0 with everything.

    Args:
        network: a layer or a composition of layers.
        x1: (n1, d) inputs, float32 or float64.
        x2: (n2, d) inputs of the same dtype, or None.

    Raises:
        ValueError: wrong shapes, no inputs, NaN or infinite inputs.
        OverflowError: the pre-activation variance left the dtype's range (a gain too large for the depth).
        NotImplementedError: the network has a layer without an infinite-width kernel here; the message says why.
    """
    first = _checked(x1, "x1")
    second = None if x2 is None else _checked(x2, "x2")
    if second is not None and (second.shape[1] != first.shape[1] or second.dtype != first.dtype):
        raise ValueError(
            f"x2 must have the features and the dtype of x1: got {second.shape[1]} {second.dtype} against "
            f"{first.shape[1]} {first.dtype}"
        )
    kernel = _propagate(network, first, second)
    if not is_traced(kernel) and not all(bool(jnp.all(jnp.isfinite(q))) for q in (kernel.variance1, kernel.variance2)):
        raise OverflowError(
            f"a pre-activation variance left {kernel.variance1.dtype}'s range: gain or inputs are too large; "
            "use the stable gain (w_var=None), a smaller w_var, fewer layers, or inputs of |x|^2 = d"
        )
    return kernel


def _propagate_eagerly(network: HasKernel, x1: jax.Array, x2: jax.Array | None) -> Kernel:
    return network.kernel(input_kernel(x1, x2))


_propagate = jax.jit(_propagate_eagerly, static_argnums=0)


def _checked(x: Any, name: str) -> jax.Array:
    array = float_array(x)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have shape (inputs, features), got {array.shape}: flatten images with x.reshape(len(x), -1)"
        )
    if 0 in array.shape:
        raise ValueError(f"{name} holds no inputs: got shape {array.shape}")
    if not is_traced(array) and not bool(jnp.all(jnp.isfinite(array))):
        bad = np.flatnonzero(~np.isfinite(np.asarray(array)).all(axis=1))
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(array)} inputs, first in row {bad[0]}"
        )
    return array


def input_kernel(x1: Float[jax.Array, "n1 d"], x2: Float[jax.Array, "n2 d"] | None = None) -> Kernel:
    """Kernel of the raw inputs: x.x'/d, no NTK yet."""
    other = x1 if x2 is None else x2
    unit1, unit2 = _unit_rows(x1), _unit_rows(other)
    distance = _cosine_distance(unit1, unit2, same=x2 is None)
    return Kernel(
        variance1=jnp.mean(x1**2, axis=1),
        variance2=jnp.mean(other**2, axis=1),
        distance=distance,
        mean1=jnp.zeros_like(distance[:, 0]),
        mean2=jnp.zeros_like(distance[0, :]),
        ntk_scaled=jnp.zeros_like(distance),
        log_scale=jnp.zeros((), distance.dtype),
        relative_error=_rounding_error(jax.lax.stop_gradient(distance)),
        law="inputs",
    )


def _unit_rows(x: jax.Array) -> jax.Array:
    # scaled by the largest entry first, so that squares of 1e-30 or 1e30 survive in float32
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    scaled = safe_divide(x, largest, 0.0)
    square = jnp.sum(scaled**2, axis=1, keepdims=True)
    return scaled * safe_divide(jnp.ones_like(square), jnp.sqrt(jnp.where(square > 0, square, 1)), 0.0)


def _cosine_distance(unit1: jax.Array, unit2: jax.Array, *, same: bool) -> jax.Array:
    """1 - u.u'; where that cancels, |u - u'|^2 / 2, row by row and only in rows that have such a pair."""
    product = 1 - jnp.matmul(unit1, unit2.T, precision="highest")
    near = product < NEAR
    if same:
        off_diagonal = ~jnp.eye(len(unit1), dtype=bool)
        near = near & off_diagonal
        product = jnp.where(off_diagonal, product, 0)

    def row(unit: jax.Array, plain: jax.Array, close: jax.Array) -> jax.Array:
        def from_difference() -> jax.Array:
            return jnp.where(close, jnp.sum((unit[None, :] - unit2) ** 2, axis=1) / 2, plain)

        return jax.lax.cond(jnp.any(close), from_difference, lambda: plain)

    return into_range(jax.lax.map(lambda args: row(*args), (unit1, product, near)))


def _rounding_error(distance: jax.Array) -> jax.Array:
    """Largest relative rounding error of a cosine distance d measured as above: eps/sqrt(d) if near, eps/d if far."""
    eps = 4 * float(np.finfo(distance.dtype).eps)
    apart = distance > 0
    d = jnp.where(apart, distance, 1)
    return jnp.max(jnp.where(apart, eps / jnp.where(d < NEAR, jnp.sqrt(d), d), 0))


def rounding(kernel: Kernel) -> float:
    """Unit roundoff of the kernel's dtype."""
    return float(np.finfo(kernel.distance.dtype).eps)


def with_covariance(kernel: Kernel, covariance: Covariance, **changes: Any) -> Kernel:
    """The kernel with another NNGP, given as columns against rows, and other fields changed along with it."""
    return replace(
        kernel,
        variance1=covariance.variance1[:, 0],
        variance2=covariance.variance2[0, :],
        distance=covariance.distance,
        **changes,
    )


def add_ntk(kernel: Kernel, addition: jax.Array, log_scale: jax.Array | float = 0.0) -> Kernel:
    """The kernel with addition * exp(log_scale) added to its NTK, rescaled if it has grown too large."""
    common = jnp.maximum(kernel.log_scale, log_scale)
    total = kernel.ntk_scaled * jnp.exp(kernel.log_scale - common) + addition * jnp.exp(log_scale - common)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(total)))
    divisor = jnp.where(largest > LARGEST_SCALED_NTK, largest, 1)
    return replace(kernel, ntk_scaled=total / divisor, log_scale=common + jnp.log(divisor))
