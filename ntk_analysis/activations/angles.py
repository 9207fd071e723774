"""Mathematics of pairs of Gaussian pre-activations: angles that keep their digits.

A pair of centered Gaussians is described by two variances and the **cosine distance** d = 1 - correlation. Close to
correlation one a float can hold d to full relative precision and 1 - d to none of it, so everything in this library
that depends on how different two inputs are is a function of d.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

OneArray = TypeVar("OneArray", jax.Array, np.ndarray)


def library_of(x: OneArray) -> Any:
    """The library, `numpy` or `jax.numpy`, whose array this is; what is traced is JAX's."""
    return np if isinstance(x, np.ndarray) else jnp


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root of max(x, 0) whose gradient at 0 is 0 and not infinite."""
    # the root comes last: XLA computes a last root or quotient of one side of the pairs once, but repeats cheaper steps
    # for each pair, together with all the cheap steps that lead to them
    return jnp.sqrt(jnp.where(x > 0, x, 0))


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    root = safe_sqrt(x)
    return root, safe_divide(jnp.full_like(root, 0.5), root, 0.0) * tangent


def safe_quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Quotient x / y for y >= 0, and x where y is 0; the quotient comes last, like the root in `safe_sqrt`."""
    return x / jnp.where(y > 0, y, 1)


def geometric_mean(x: jax.Array, y: jax.Array) -> jax.Array:
    """Geometric mean sqrt(x y) for x, y >= 0, as a product of roots, so that variances of 1e-200 do not underflow."""
    return safe_sqrt(x) * safe_sqrt(y)


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: jax.Array | float) -> jax.Array:
    """Quotient numerator / denominator, and `otherwise` where the denominator is 0; gradients stay finite."""
    usable = denominator != 0
    return jnp.where(usable, numerator / jnp.where(usable, denominator, 1), otherwise)


@jax.custom_jvp
def difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """Difference x - y, and 0 where it is at most 8 roundings; with the derivatives of x - y everywhere.

    Two programs may compute the same number differently, such as that of a duplicate.
    """
    apart = x - y
    # x alone says how large both are: nothing of it is computed for each pair where x is that of rows
    return jnp.where(jnp.abs(apart) <= 8 * float(np.finfo(apart.dtype).eps) * jnp.abs(x), 0, apart)


@difference.defjvp
def _difference_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return difference(*primals), tangents[0] - tangents[1]


def zero_where(condition: jax.Array, x: jax.Array) -> jax.Array:
    """0 where the condition holds, else x; with the derivatives of x everywhere: only the value is rounding there."""
    return x - jnp.where(condition, jax.lax.stop_gradient(x), 0)


@jax.custom_jvp
def no_second_derivative(x: jax.Array, where: jax.Array) -> jax.Array:
    """x with its first derivatives, and with second derivatives that are NaN `where` there are none."""
    del where
    return x


@no_second_derivative.defjvp
def _no_second_derivative_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x, where = primals
    return no_second_derivative(x, where), tangents[0] * no_derivative(x, where)


@jax.custom_jvp
def no_derivative(x: jax.Array, where: jax.Array) -> jax.Array:
    """1 for each entry of x, with derivatives by x that are NaN `where` there are none, and 0 elsewhere."""
    return jnp.ones_like(x, shape=jnp.broadcast_shapes(x.shape, where.shape))


@no_derivative.defjvp
def _no_derivative_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return no_derivative(*primals), jnp.where(primals[1], jnp.nan, 0) * tangents[0]


def opposite_error(distance: jax.Array) -> jax.Array:
    """Error of a cosine distance behind an activation that the rounding of a distance above 1 causes.

    That rounding is absolute, not relative: nearly opposite inputs are close again behind an even function, and 2 -
    distance has lost its digits.
    """
    return jnp.where(distance > 1, 8 * float(np.finfo(distance.dtype).eps), 0)


@jax.custom_jvp
def into_range(distance: jax.Array) -> jax.Array:
    """Cosine distances pushed back into [0, 2] after rounding, with all their derivatives."""
    return jnp.where(distance < 0, 0, jnp.where(distance > 2, 2, distance))


@into_range.defjvp
def _into_range_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return into_range(*primals), tangents[0]


@functools.cache
def _polynomial(function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> tuple[float, ...]:
    """Coefficients in 2 x - 1, lowest first, of a polynomial equal to function on [0, 1] to the rounding of dtype.

    The nearest branch point of the function has to be at -1 or at 2. Then the series falls by 3 + sqrt(8) each degree,
    and it starts so small that two degrees are needless.
    """
    degree = math.ceil(-math.log(np.finfo(dtype).eps) / math.log(3 + math.sqrt(8))) - 2
    series = np.polynomial.Chebyshev.interpolate(function, degree, domain=[0, 1])
    powers = series.convert(kind=np.polynomial.Polynomial, domain=[0, 1], window=[-1, 1])
    return tuple(float(c) for c in powers.coef)


def _evaluate(function: Callable[[np.ndarray], np.ndarray], x: OneArray) -> OneArray:
    """Values function(x) for x in [0, 1], by the function's polynomial."""
    coefficients = _polynomial(function, x.dtype)
    centered = 2 * x - 1
    value = coefficients[-1] * centered + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * centered + coefficient
    return value


def _angle_over_chord(distance: np.ndarray) -> np.ndarray:
    """Ratio t / sqrt(2 d) for the angle t at cosine distance d."""
    half_chord = np.sqrt(distance / 2)
    return np.arcsin(half_chord) / half_chord


def _bend_over_chord(distance: np.ndarray) -> np.ndarray:
    """Ratio (sin t - t cos t) / (d sqrt(2 d)): integral of the angle's power series, where the difference cancels."""
    k = np.arange(64)
    series = np.cumprod(np.append(1.0, (2 * k[1:] - 1) / (2 * k[1:]))) / (2 * k + 1) / (k + 1.5)
    return np.sum(series * (distance[:, None] / 2) ** k, axis=1)


def _arctangent_over_root(square: np.ndarray) -> np.ndarray:
    return np.arctan(np.sqrt(square)) / np.sqrt(square)


def plain_angle(distance: OneArray) -> OneArray:
    """The angle as `angle`, of arrays of NumPy or JAX, without its derivatives."""
    # sqrt(2 d) times a polynomial, because XLA's arctan2 costs as much as ten of these
    library = library_of(distance)
    nearer = library.minimum(distance, 2 - distance)
    acute = library.sqrt(2 * nearer) * _evaluate(_angle_over_chord, nearer)
    return library.where(distance < 1, acute, math.pi - acute)


@jax.custom_jvp
def angle(distance: jax.Array) -> jax.Array:
    """Angle in radians, in [0, pi], between vectors at this cosine distance, which is in [0, 2].

    It has full relative precision near 0. The derivative 1/sin(angle) is infinite at both ends; 0 is returned there
    instead.
    """
    return plain_angle(distance)


@angle.defjvp
def _angle_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (distance,), (tangent,) = primals, tangents
    sine = safe_sqrt(distance * (2 - distance))
    return angle(distance), safe_divide(jnp.ones_like(sine), sine, 0.0) * tangent


@jax.custom_jvp
def sine_minus_angle_cosine(distance: jax.Array) -> jax.Array:
    """Bend sin(t) - t cos(t) of the dual activations of |x| and ReLU, at the angle t of this cosine distance.

    It is the integral of the angle over the distance, of order t^3 near 0, with full relative precision there. Its
    derivative in the distance is t, finite everywhere, though the chain rule passes through infinity.
    """
    nearer = jnp.minimum(distance, 2 - distance)
    acute = nearer * jnp.sqrt(2 * nearer) * _evaluate(_bend_over_chord, nearer)
    return jnp.where(distance < 1, acute, acute + math.pi * (distance - 1))


@sine_minus_angle_cosine.defjvp
def _sine_minus_angle_cosine_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (distance,), (tangent,) = primals, tangents
    return sine_minus_angle_cosine(distance), angle(distance) * tangent


@jax.custom_jvp
def acute_angle(tangent: jax.Array) -> jax.Array:
    """Angle arctan(tangent) for a tangent in [-1, 1], by a polynomial like `angle`."""
    return tangent * _evaluate(_arctangent_over_root, tangent**2)


@acute_angle.defjvp
def _acute_angle_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (tangent,), (turned,) = primals, tangents
    return acute_angle(tangent), turned / (1 + tangent**2)


@jax.custom_jvp
def quadrant_angle(opposite: jax.Array, adjacent: jax.Array) -> jax.Array:
    """Angle arctan2(opposite, adjacent) in [0, pi/2], for opposite >= 0, adjacent > 0."""
    acute = acute_angle(jnp.minimum(opposite, adjacent) / jnp.maximum(opposite, adjacent))
    return jnp.where(opposite < adjacent, acute, math.pi / 2 - acute)


@quadrant_angle.defjvp
def _quadrant_angle_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (opposite, adjacent), (turned, stretched) = primals, tangents
    square = opposite**2 + adjacent**2
    return quadrant_angle(opposite, adjacent), (adjacent * turned - opposite * stretched) / square
