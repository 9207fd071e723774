"""Kernels as functions of one angle: a network of any depth at the price of one layer.

Without biases, and with activations for which phi(s x) = s phi(x), s > 0, the kernels of a network depend on a pair of
vectors only through its angle t: with q = |x|^2 / d, 1 - correlation = f(t) and Theta = sqrt(q1 q2) theta(t). So do
those of any network on inputs of one q, whose f and theta are this q's. They are computed once, as series by
`angle_fit`, and a pair costs these series in place of all layers.

Pairs at cosine distances from NEAR on share one expansion of either function in Chebyshev polynomials of
y = 1 / (t + shift), behind powers of y that take up their growth or decay towards small angles. Nearer pairs are few,
but a chaotic network's kernels run through tens of decades there: each octave of the distance has series of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations.angles import OneArray, geometric_mean, into_range, library_of, plain_angle, safe_sqrt
from ntk_analysis.infinite.distances import NEAR, rounding_error, unit_vectors, vector_distance
from ntk_analysis.infinite.kernel import LARGEST_SCALED_NTK, Kernel, Law

Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
FAR, COINCIDENT = -2, -1  # places behind the octaves
NEAR_ANGLE = math.acos(1 - NEAR)
TILE = 1000  # rows and columns of a joint kernel that are computed and mirrored at once; 500 and 2,000 are no faster


@dataclass(frozen=True, eq=False)
class AngularFunction:
    """The functions f and theta of one network as series in the cosine distance d, with the law of its units.

    Attributes:
        variance: variance of a unit (second moment, after an activation) divided by that of the inputs.
        mean: mean across channels, divided by the standard deviation of the inputs.
        law: law of the units, as in `Kernel`.
        shift: shift of the angle t in y = 1 / (t + shift).
        widest: largest angle t: pi; or pi/2 if f and theta are even (|x|), where pi - t stands for larger angles.
        order: 1 if f is expanded in units of d, as the angles of shallow networks are, else 0.
        powers: powers of y in f = d^order y^powers[0] sum_k a_k T_k(x) and theta = y^powers[1] sum_k b_k T_k(x), x
            affine in y.
        far: coefficients a_k and b_k, of shape (2, degree + 1).
        near: coefficients of f / d and theta in each octave of d up to that of NEAR, of shape (degree + 1, 2, octaves).
        first_exponent: binary exponent of the first octave; nearer pairs use its series.
        log_far: log of the largest |theta| from NEAR on, the unit of the b_k.
        log_near: log of the largest |theta| in each octave, the unit of its coefficients, of shape (octaves,).
        log_coincident: log of theta(0).
        error: largest error of f and theta, measured between the nodes in the dtype in which they are evaluated.
    """

    variance: float
    mean: float
    law: Law
    shift: float
    widest: float
    order: int
    powers: tuple[int, int]
    far: np.ndarray
    near: np.ndarray
    first_exponent: int
    log_far: float
    log_near: np.ndarray
    log_coincident: float
    error: float = math.inf

    def log_largest(self, closest: jax.Array) -> jax.Array:
        """Upper bound on log max theta when the smallest distance is `closest`."""
        from_here_on = np.maximum.accumulate(np.append(self.log_near, self.log_far)[::-1])[::-1]
        near = jnp.asarray(from_here_on, closest.dtype)[self._octave(closest)[0]]
        everywhere = max(float(from_here_on[0]), self.log_coincident)
        return jnp.where(closest == 0, everywhere, jnp.where(closest < NEAR, near, self.log_far))

    def __call__(self, distance: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        """f and theta exp(-log_scale), of shape (n1, n2), at cosine distances (n1, n2)."""
        folded = self.folded(distance)
        values = self.from_near_on(folded, log_scale)
        found = rows_anew(folded < NEAR, values, lambda row: self.below_near(folded[row], log_scale))
        return found[0], found[1]

    def folded(self, distance: jax.Array) -> jax.Array:
        """The cosine distance of the angle in [0, widest] that has the same f and theta."""
        return distance if self.widest == math.pi else jnp.minimum(distance, 2 - distance)

    def from_near_on(self, distance: OneArray, log_scale: OneArray) -> tuple[OneArray, OneArray]:
        """f and theta exp(-log_scale) at folded cosine distances from NEAR on."""
        shifted = plain_angle(library_of(distance).maximum(distance, NEAR)) + self.shift
        y = 1 / shifted
        f, ntk = series(affine(y, self.shift, self.widest), self.far.T.tolist())
        first, second = (y**power if power >= 0 else shifted**-power for power in self.powers)
        if self.order == 1:
            f = f * distance
        return first * f, self._units(log_scale)[FAR] * (second * ntk)

    def below_near(self, distance: OneArray, log_scale: OneArray) -> tuple[OneArray, OneArray]:
        """f and theta exp(-log_scale) at folded cosine distances below NEAR."""
        library, units = library_of(distance), self._units(log_scale)
        octave, mantissa = self._octave(distance)
        ratio, ntk = series(4 * mantissa - 3, library.asarray(self.near, distance.dtype)[:, :, octave])
        return distance * ratio, library.where(distance > 0, units[octave] * ntk, units[COINCIDENT])

    def coincident(self, log_scale: OneArray) -> OneArray:
        """theta(0) exp(-log_scale)."""
        return self._units(log_scale)[COINCIDENT]

    def _octave(self, distance: OneArray) -> tuple[OneArray, OneArray]:
        library = library_of(distance)
        mantissa, exponent = library.frexp(distance)
        return library.clip(exponent - self.first_exponent, 0, len(self.log_near) - 1), mantissa

    def _units(self, log_scale: OneArray) -> OneArray:
        """Units of theta exp(-log_scale) in each octave, and FAR and COINCIDENT; one array, as XLA computes it once."""
        library = library_of(log_scale)
        logs = np.append(self.log_near, (self.log_far, self.log_coincident))
        return library.exp(library.asarray(logs, log_scale.dtype) - log_scale)


def affine(y: OneArray, shift: float, widest: float) -> OneArray:
    """y = 1 / (t + shift), mapped to [-1, 1] for t from NEAR_ANGLE to `widest`."""
    low, high = 1 / (widest + shift), 1 / (NEAR_ANGLE + shift)
    return (y - low) * (2 / (high - low)) - 1


def series(x: OneArray, terms: Sequence[Sequence[float]] | OneArray) -> tuple[OneArray, OneArray]:
    """The sums of a_k T_k(x) and of b_k T_k(x), which share their T_k; `terms` are two or more pairs (a_k, b_k)."""
    previous: OneArray | float = 1.0
    current, twice = x, 2 * x
    (a0, b0), (a1, b1) = terms[:2]
    first, second = a0 + a1 * x, b0 + b1 * x
    for a, b in terms[2:]:
        previous, current = current, twice * current - previous
        first, second = first + a * current, second + b * current
    return first, second


def angular_kernel(function: AngularFunction, x1: jax.Array, x2: jax.Array | None) -> Kernel:
    """Kernel of the function's network between vectors x1 and x2 (None: x1 with itself), at any depth.

    It must not be differentiated: at angle 0 the derivatives of f and theta are not finite.
    """
    other = x1 if x2 is None else x2
    variance1, variance2 = jnp.mean(x1**2, axis=-1), jnp.mean(other**2, axis=-1)
    unit1 = unit_vectors(x1)
    if x2 is None:
        closest, distance = jnp.zeros((), x1.dtype), None
    else:
        distance = vector_distance(unit1, unit_vectors(x2), same=False)
        closest = jnp.min(function.folded(distance))
    magnitude = jnp.log(jnp.max(geometric_mean(jnp.max(variance1), jnp.max(variance2))))
    log_scale = jnp.maximum(function.log_largest(closest) + magnitude - math.log(LARGEST_SCALED_NTK), 0)
    if distance is None:
        values, error = _joint(function, unit1, safe_sqrt(variance1), log_scale)
    else:
        values = function(distance, log_scale)
        values = values[0], values[1] * (safe_sqrt(variance1)[:, None] * safe_sqrt(variance2)[None])
        error = rounding_error(distance)
    return Kernel(
        variance1=function.variance * variance1,
        variance2=function.variance * variance2,
        distance=values[0],
        mean1=function.mean * safe_sqrt(variance1),
        mean2=function.mean * safe_sqrt(variance2),
        ntk_scaled=values[1],
        log_scale=log_scale,
        relative_error=error + function.error,
        law=function.law,
        joint=x2 is None,
        approximation_error=function.error,
    )


def _joint(
    function: AngularFunction, unit: jax.Array, root: jax.Array, log_scale: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """f and |x_i| |x_j| theta / d of all pairs, tile by tile and mirrored, with the rounding error of the distances."""
    count = len(unit)
    size = min(TILE, count)
    starts = np.minimum(np.arange(0, count, size), count - size)
    # unsigned: of a signed place XLA asks first whether it counts from the end
    corners = np.stack([starts[index] for index in np.triu_indices(len(starts))], axis=1).astype(np.uint32)

    def tile(carry: Carry, corner: jax.Array) -> tuple[Carry, None]:
        distances, ntk, error = carry
        (unit1, root1), (unit2, root2) = (
            [jax.lax.dynamic_slice_in_dim(of_inputs, start, size) for of_inputs in (unit, root)] for start in corner
        )
        distance, far, theta = _tile(function, unit1, unit2, corner, log_scale)
        theta = theta * (root1[:, None] * root2[None])
        distances, ntk = (
            jax.lax.dynamic_update_slice(
                jax.lax.dynamic_update_slice(whole, part, (corner[0], corner[1])), part.T, (corner[1], corner[0])
            )
            for whole, part in ((distances, far), (ntk, theta))
        )
        return (distances, ntk, jnp.maximum(error, rounding_error(distance))), None

    empty = jnp.zeros((count, count), unit.dtype)
    (distances, ntk, error), _ = jax.lax.scan(tile, (empty, empty, jnp.zeros((), unit.dtype)), jnp.asarray(corners))
    return (distances, ntk), error


def _tile(
    function: AngularFunction, unit1: jax.Array, unit2: jax.Array, corner: jax.Array, log_scale: jax.Array
) -> tuple[jax.Array, ...]:
    """Cosine distances of unit vectors as `vector_distance` has them, f and theta exp(-log_scale), from a corner on."""
    rows, columns = (
        start + jnp.arange(len(unit), dtype=start.dtype) for start, unit in zip(corner, (unit1, unit2), strict=True)
    )
    identical = rows[:, None] == columns[None]
    product = into_range(jnp.where(identical, 0, 1 - jnp.matmul(unit1, unit2.T, precision="highest")))
    folded = function.folded(product)
    f, theta = function.from_near_on(folded, log_scale)
    plain = product, jnp.where(product == 0, 0, f), jnp.where(product == 0, function.coincident(log_scale), theta)

    def anew(row: jax.Array) -> tuple[jax.Array, ...]:
        from_difference = jnp.sum((unit1[row][None] - unit2) ** 2, axis=1) / 2
        distance = jnp.where(product[row] < NEAR, from_difference, product[row])
        return distance, *function.below_near(function.folded(distance), log_scale)

    return rows_anew((folded < NEAR) & ~identical, plain, anew)


def rows_anew(
    close: jax.Array, plain: tuple[jax.Array, ...], anew: Callable[[jax.Array], tuple[jax.Array, ...]]
) -> tuple[jax.Array, ...]:
    """The plain arrays (n1, n2), and what anew(row) gives for close pairs, computed for rows that have one only."""
    number = np.arange(len(close), dtype=np.uint32)
    # those with a close pair in their order, and behind them only numbers of no row
    rows = jnp.sort(jnp.where(jnp.any(close, axis=1), number, len(close)))
    rows = jnp.append(rows, jnp.full_like(rows, len(close), shape=1))

    def replaced(state: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        step, arrays = state
        row = rows[step]
        found = tuple(
            jax.lax.dynamic_update_index_in_dim(whole, jnp.where(close[row], new, whole[row]), row, 0)
            for new, whole in zip(anew(row), arrays, strict=True)
        )
        return step + 1, found

    start = jnp.zeros((), rows.dtype)
    return jax.lax.while_loop(lambda state: rows[state[0]] < len(close), replaced, (start, plain))[1]
