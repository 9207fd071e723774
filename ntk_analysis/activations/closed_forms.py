"""Closed forms of the duals of erf, sine and GELU, for `duals.ClosedForm`.

For f = phi and f = phi' each has `coincident`(q1, q2) = E[f(sqrt(q1) z) f(sqrt(q2) z)] and `drop`(q1, q2, distance),
how far E[f(u) f(v)] falls from there at correlation 1 - distance, written so that nothing cancels at small distances
(`erf_lost` counts from sqrt(E[f(u)^2] E[f(v)^2])).
"""

import math

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import (
    acute_angle,
    geometric_mean,
    nearly_equal,
    quadrant_angle,
    safe_divide,
    safe_sqrt,
    zero_where,
)


def determinant(p1: jax.Array, p2: jax.Array, distance: jax.Array) -> jax.Array:
    """Determinant D = (1 + p1)(1 + p2) - K^2, where K = sqrt(p1 p2) (1 - distance), as a sum of non-negative terms."""
    return 1 + p1 + p2 + p1 * p2 * (distance * (2 - distance))


def inverse_root(x: jax.Array) -> jax.Array:
    """1/sqrt(x) for positive x, as a quotient: XLA's inverse root costs more than root and quotient together."""
    return jnp.sqrt(x) / x


def arcsine(p1: jax.Array, p2: jax.Array) -> jax.Array:
    """Angle arcsin(K / sqrt((1 + p1)(1 + p2))) at K = sqrt(p1 p2): twice the angle of tangent sin / (1 + cos)."""
    return 2 * quadrant_angle(geometric_mean(p1, p2), jnp.sqrt(1 + p1) * jnp.sqrt(1 + p2) + jnp.sqrt(1 + p1 + p2))


def erf_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[erf erf] = (2/pi) arcsin(2 K / sqrt((1 + 2 q1)(1 + 2 q2))) (Williams 1998), at rho = 1."""
    return (2 / math.pi) * arcsine(2 * q1, 2 * q2)


def erf_lost(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Difference sqrt(E[erf(u)^2] E[erf(v)^2]) - E[erf(u) erf(v)], without cancellation.

    With p = 2 q, a_i = arcsin(p_i / (1 + p_i)), b the mean of the angles a_i, and c the angle of the moment,
    sqrt(a_1 a_2) = b - (sqrt(a_1) - sqrt(a_2))^2 / 2: see `mean_less_moment` and `arcsines_apart`.
    """
    p1, p2 = 2 * q1, 2 * q2
    roots = safe_sqrt(arcsine(p1, p1)) + safe_sqrt(arcsine(p2, p2))
    shares = safe_divide(2 * arcsines_apart(p1, p2), roots, 0.0) ** 2 / 2
    return (2 / math.pi) * (mean_less_moment(p1, p2, distance) - shares)


def mean_less_moment(p1: jax.Array, p2: jax.Array, distance: jax.Array) -> jax.Array:
    """Difference b - c of the mean b of the angles a_i = arcsin(p_i / (1 + p_i)) and the angle c of the moment,
    arcsin(K / sqrt((1 + p1)(1 + p2))) at K = sqrt(p1 p2) (1 - distance), without cancellation.

    Let w_i = sqrt(1 + 2 p_i). The tangent of (b - c) / 2 is (sin b - sin c) / (cos b + cos c). Here it is extended by
    2 sqrt((1 + p1)(1 + p2)), and sin b - sin c is split at sqrt(sin a_1 sin a_2), from which sin b differs by
    sin^2((a_1 - a_2) / 2) over their sum. All differences are those of p1 and p2 over sums.
    """
    (w1, w2), (v1, v2), largest = _widths(p1, p2), _widths_less_one(p1, p2), geometric_mean(p1, p2)
    apart = safe_divide(_wider(p1, p2) ** 2, v1 * v2 + v1 + v2 + 2 * largest, 0.0)
    opposite = apart + 2 * largest * distance
    return 2 * quadrant_angle(opposite, w1 + w2 + 2 * jnp.sqrt(determinant(p1, p2, distance)))


def arcsines_apart(p1: jax.Array, p2: jax.Array) -> jax.Array:
    """Half of the difference of the angles a_i of `mean_less_moment`, by tan(a_i / 2) = (w_i - 1) / (w_i + 1)."""
    (w1, w2), (v1, v2) = _widths(p1, p2), _widths_less_one(p1, p2)
    return acute_angle(2 * _wider(p1, p2) / ((w1 + 1) * (w2 + 1) + v1 * v2))


def _widths(p1: jax.Array, p2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The roots w_i = sqrt(1 + 2 p_i)."""
    return jnp.sqrt(1 + 2 * p1), jnp.sqrt(1 + 2 * p2)


def _widths_less_one(p1: jax.Array, p2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The differences w_i - 1."""
    w1, w2 = _widths(p1, p2)
    return 2 * p1 / (1 + w1), 2 * p2 / (1 + w2)


def _wider(p1: jax.Array, p2: jax.Array) -> jax.Array:
    """The difference w_1 - w_2, and 0 within rounding: another loop may compute a duplicate's variance."""
    w1, w2 = _widths(p1, p2)
    return 2 * zero_where(nearly_equal(p1, p2), p1 - p2) / (w1 + w2)


def erf_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[erf' erf'] at rho = 1."""
    return (4 / math.pi) * inverse_root(1 + 2 * q1 + 2 * q2)


def erf_derivative(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """E[erf' erf'] = (4/pi) / sqrt((1 + 2 q1)(1 + 2 q2) - 4 K^2)."""
    return (4 / math.pi) * inverse_root(determinant(2 * q1, 2 * q2, distance))


def erf_derivative_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[erf' erf'] from rho = 1 to rho = 1 - distance."""
    return (4 / math.pi) * _inverse_root_drop(2 * q1, 2 * q2, distance)


def _inverse_root_drop(p1: jax.Array, p2: jax.Array, distance: jax.Array) -> jax.Array:
    """Difference of 1/sqrt(D) at rho = 1 and 1/sqrt(D) at rho = 1 - distance."""
    smaller, larger = 1 + p1 + p2, determinant(p1, p2, distance)
    increase = p1 * p2 * (distance * (2 - distance))
    root1, root2 = jnp.sqrt(smaller), jnp.sqrt(larger)
    return increase / ((root1 + root2) * root1 * root2)


def wave_coincident(sign: int, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Value of exp(-(q1 + q2)/2) sinh(K) for sign = -1 (sine), cosh(K) for sign = 1 (cosine), at K = sqrt(q1 q2)."""
    # both exponents are <= 0, so large variances underflow to the right limit and never overflow
    covariance, mean_variance = geometric_mean(q1, q2), (q1 + q2) / 2
    if sign < 0:
        return -jnp.exp(covariance - mean_variance) * jnp.expm1(-2 * covariance) / 2
    return (jnp.exp(covariance - mean_variance) + jnp.exp(-covariance - mean_variance)) / 2


def wave_drop(sign: int, q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of the moment in `wave_coincident` from rho = 1 to rho = 1 - distance."""
    covariance, mean_variance = geometric_mean(q1, q2), (q1 + q2) / 2
    lost = covariance * distance
    waves = jnp.exp(covariance - mean_variance) - sign * jnp.exp(lost - covariance - mean_variance)
    return -jnp.expm1(-lost) * waves / 2


def wave_mismatch(sign: int, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Difference sqrt(E[f(u)^2] E[f(v)^2]) - E[f(u) f(v)] at rho = 1, f as in `wave_coincident`: a quotient of sums.

    The difference of the squares is exp(-q1 - q2) (sinh q1 sinh q2 - sinh^2 sqrt(q1 q2)), and for the cosine
    2 sinh^2((q1 - q2)/2) more. With s, t = sqrt(q1) +- sqrt(q2) the bracket is also that of s^2/2 and t^2/2, whose
    ratio is large where that of q1 and q2 is near 1.
    """
    sum_ = safe_sqrt(q1) + safe_sqrt(q2)
    difference = safe_divide(q1 - q2, sum_, 0.0)
    larger, smaller = jnp.maximum(q1, q2), jnp.minimum(q1, q2)
    near = smaller > larger / 4
    a, b = jnp.where(near, sum_**2 / 2, larger), jnp.where(near, difference**2 / 2, smaller)
    apart = _sinh_bracket(a, b, jnp.where(near, (q1 - q2) / 2, safe_sqrt(q1) * safe_sqrt(q2)))
    if sign > 0:
        apart = apart + jnp.exp(jnp.abs(q1 - q2) - q1 - q2) * jnp.expm1(-jnp.abs(q1 - q2)) ** 2 / 2
    whole = geometric_mean(wave_coincident(sign, q1, q1), wave_coincident(sign, q2, q2))
    return safe_divide(apart, whole + wave_coincident(sign, q1, q2), 0.0)


def _sinh_bracket(a: jax.Array, b: jax.Array, middle: jax.Array) -> jax.Array:
    """The bracket exp(-a - b) (sinh a sinh b - sinh^2 m), m^2 = a b, for a > b >= 0 of different size: no cancellation.

    The root m is given, for it may have either sign: computed as a root of b it would have no derivatives at 0.
    """
    # T(x) = sinh(x)/x - 1, with which the bracket over a b is T(a) + T(b) - 2 T(m) + T(a) T(b) - T(m)^2
    inside = jnp.where(middle**2 < 1, middle, 0)
    x, y, z = (_sinh_over_argument(value) for value in (jnp.minimum(a, 1), jnp.minimum(b, 1), inside))
    small = jnp.exp(-a - b) * a * b * (x + y - 2 * z + x * y - z**2)
    far = jnp.exp(-((safe_sqrt(a) - safe_sqrt(b)) ** 2)) * jnp.expm1(-2 * jnp.abs(middle)) ** 2 / 4
    square = jnp.where(middle**2 < 1, jnp.exp(-a - b) * inside**2 * (1 + z) ** 2, far)
    return jnp.where(a < 1, small, jnp.expm1(-2 * a) * jnp.expm1(-2 * b) / 4 - square)


def _sinh_over_argument(x: jax.Array) -> jax.Array:
    """sinh(x)/x - 1 for x in [0, 1], by its power series."""
    square, total = x**2, jnp.zeros_like(x)
    for n in range(8, 0, -1):
        total = (total + 1) * square / (2 * n * (2 * n + 1))
    return total


def gelu_orthant(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Probability P(z < u, z' < v) for independent standard normal z, z', at rho = 1: the factor of K in E[phi phi]."""
    return 1 / 4 + arcsine(q1, q2) / (2 * math.pi)


def gelu_orthant_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of `gelu_orthant`: half the difference of two angles has the tangent (sin a - sin b) / (cos a + cos b)."""
    cosines = jnp.sqrt(1 + q1 + q2) + jnp.sqrt(determinant(q1, q2, distance))
    return quadrant_angle(geometric_mean(q1, q2) * distance, cosines) / math.pi


def gelu_weight(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """The weight 1/(1 + q1) + 1/(1 + q2)."""
    return 1 / (1 + q1) + 1 / (1 + q2)


def gelu_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi phi] at rho = 1, see `activations.Gelu`."""
    rest = q1 * q2 * gelu_weight(q1, q2) * inverse_root(1 + q1 + q2)
    return geometric_mean(q1, q2) * gelu_orthant(q1, q2) + rest / (2 * math.pi)


def gelu_mismatch(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Difference sqrt(E[phi(u)^2] E[phi(v)^2]) - E[phi(u) phi(v)] at rho = 1, without a difference of nearly equal
    numbers that are not small in q1 - q2.

    At rho = 1 the moment is K c, with c = 1/4 + (a + t) / (2 pi), a the angle of `arcsine`, S = 1 + q1 + q2 and t = K
    (1/(1 + q1) + 1/(1 + q2)) / sqrt(S). Let e be the sum of a + t at (q1, q1) and (q2, q2) less twice that at (q1,
    q2), and h half the difference of the first two. Then c(q1, q1) c(q2, q2) - c(q1, q2)^2 is (e (2 pi + the sum of
    the four a + t) - 4 h^2) / (16 pi^2). Of e and h the part of the angles a is that of erf. The part of t is written
    with s_i = sqrt(q_i), r_i = 1 / (1 + q_i) and w_i = sqrt(1 + 2 q_i), whose differences are those of q1 and q2 over
    sums. For large variances both parts of e cancel, as ReLU has no mismatch: q1 + q2 multiplies a rounding then.
    """
    s1, s2, r1, r2 = safe_sqrt(q1), safe_sqrt(q2), 1 / (1 + q1), 1 / (1 + q2)
    (w1, w2), root = _widths(q1, q2), jnp.sqrt(1 + q1 + q2)
    below, above, over = r1 * r2, (q1 * r1) * (q2 * r2), 1 / (w1 * w2)
    roots_apart = safe_divide(q1 - q2, s1 + s2, 0.0)
    slopes = (q1 - q2) / (w1 * (root + w1)) * ((q1 - q2) / (w2 * (root + w2)))
    bend = root / (w1 + w2) * (below * (w1 * w2 + 1) - 2 * above) + below - 2 * above
    second = roots_apart**2 * (below - (s1 * r1) * (s2 * r2)) - slopes * bend
    second = 2 * mean_less_moment(q1, q2, jnp.zeros_like(q1 + q2)) + 2 * second / root
    half = arcsines_apart(q1, q2) + _wider(q1, q2) * (below * (1 + over) / 2 - above * over)
    angle1, angle2, angle = _gelu_angle(q1, q1), _gelu_angle(q2, q2), _gelu_angle(q1, q2)
    apart = (second * (2 * math.pi + angle1 + angle2 + 2 * angle) - 4 * half**2) / (16 * math.pi**2)
    share1, share2, share = (1 / 4 + x / (2 * math.pi) for x in (angle1, angle2, angle))
    return s1 * s2 * apart / (safe_sqrt(share1) * safe_sqrt(share2) + share)


def _gelu_angle(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """The sum a + t of `gelu_mismatch`."""
    return arcsine(q1, q2) + geometric_mean(q1, q2) * gelu_weight(q1, q2) * inverse_root(1 + q1 + q2)


def gelu_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[phi phi] from rho = 1 to rho = 1 - distance."""
    largest, product = geometric_mean(q1, q2), q1 * q2
    bend = (1 / (1 + q1)) * (1 / (1 + q2)) * (1 - product)  # coefficient of K^2
    rest = gelu_weight(q1, q2) * _inverse_root_drop(q1, q2, distance)
    rest = rest + bend * (distance * (2 - distance)) * inverse_root(determinant(q1, q2, distance))
    linear = distance * gelu_orthant(q1, q2) + (1 - distance) * gelu_orthant_drop(q1, q2, distance)
    return largest * linear + product * rest / (2 * math.pi)


def gelu_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi' phi'] at rho = 1."""
    return gelu_orthant(q1, q2) + geometric_mean(q1, q2) * _gelu_slope(q1, q2, 1 + q1 + q2)


def gelu_derivative(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """E[phi' phi'], see `activations.Gelu`."""
    slope = _gelu_slope(q1, q2, determinant(q1, q2, distance))
    covariance = geometric_mean(q1, q2) * (1 - distance)
    return gelu_orthant(q1, q2) - gelu_orthant_drop(q1, q2, distance) + covariance * slope


def _gelu_slope(q1: jax.Array, q2: jax.Array, determinant: jax.Array) -> jax.Array:
    """The slope (1/(1 + q1) + 1/(1 + q2) + 1/D) / (2 pi sqrt(D))."""
    inverse = inverse_root(determinant)
    return (gelu_weight(q1, q2) + inverse**2) * inverse / (2 * math.pi)


def gelu_derivative_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[phi' phi'] from rho = 1 to rho = 1 - distance."""
    largest, smaller, larger = geometric_mean(q1, q2), 1 + q1 + q2, determinant(q1, q2, distance)
    covariance, increase = largest * (1 - distance), q1 * q2 * (distance * (2 - distance))
    weight = gelu_weight(q1, q2) + 1 / smaller
    # K w / sqrt(D) falls through K, through 1/sqrt(D) and through the 1/D inside the weight w, one after another
    rest = largest * distance * weight / jnp.sqrt(smaller)
    rest = rest + covariance * weight * _inverse_root_drop(q1, q2, distance)
    rest = rest + covariance * increase / (smaller * larger * jnp.sqrt(larger))
    return gelu_orthant_drop(q1, q2, distance) + rest / (2 * math.pi)
