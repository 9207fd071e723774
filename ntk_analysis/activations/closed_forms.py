"""Closed forms of the duals of erf, sine and GELU, for `duals.ClosedForm`.

For f = phi and f = phi' each has `coincident`(q1, q2) = E[f(sqrt(q1) z) f(sqrt(q2) z)] and `drop`(q1, q2, distance),
how far E[f(u) f(v)] falls from there at correlation 1 - distance, written so that nothing cancels at small distances
(`erf_lost` and `gelu_lost` count from sqrt(E[f(u)^2] E[f(v)^2])).
"""

import math

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import geometric_mean, quadrant_angle, safe_divide, safe_quotient, safe_sqrt
from ntk_analysis.activations.arcs import Arc, arcs


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
    """Difference sqrt(E[erf(u)^2] E[erf(v)^2]) - E[erf(u) erf(v)]: sqrt(a_1 a_2) = b - (sqrt(a_1) - sqrt(a_2))^2 / 2
    for the angles of `arcs` at p = 2 q.
    """
    pair = arcs(2 * q1, 2 * q2, distance)
    roots = safe_sqrt(pair.one.half) + safe_sqrt(pair.two.half)
    return (2 / math.pi) * (pair.lag - safe_quotient(pair.halves_apart, roots) ** 2)


def erf_cancels(q1: jax.Array, q2: jax.Array, found: jax.Array) -> jax.Array:
    """The part of the mean of the angles above their root, relative to it: what small unequal variances take away."""
    root1, root2 = safe_sqrt(erf_coincident(q1, q1)), safe_sqrt(erf_coincident(q2, q2))
    return safe_divide((root1 - root2) ** 2, 2 * root1 * root2, 0.0) + jnp.zeros_like(found)


def as_variances_grow(q1: jax.Array, q2: jax.Array, found: jax.Array) -> jax.Array:
    """The distance times q1 + q2: what cancels in the exponents of sine, and between the terms of GELU."""
    return (q1 + q2) * found


def erf_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[erf' erf'] at rho = 1."""
    return (4 / math.pi) * inverse_root(1 + 2 * q1 + 2 * q2)


def erf_derivative(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """E[erf' erf'] = (4/pi) / sqrt((1 + 2 q1)(1 + 2 q2) - 4 K^2), whose root is r / ((1 - t_1)(1 - t_2)) of `arcs`."""
    pair = arcs(2 * q1, 2 * q2, distance)
    return (4 / math.pi) * (pair.one.rest * pair.two.rest) / pair.cosine


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
    return geometric_mean(q1, q2) * _gelu_share(q1, q2)


def _gelu_share(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi phi] / sqrt(q1 q2) at rho = 1."""
    rest = geometric_mean(q1, q2) * gelu_weight(q1, q2) * inverse_root(1 + q1 + q2)
    return gelu_orthant(q1, q2) + rest / (2 * math.pi)


def gelu_lost(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Difference sqrt(E[phi(u)^2] E[phi(v)^2]) - E[phi(u) phi(v)].

    In the angles of `arcs` at p = q, and with k = 1 - sin a = 1 / (1 + q),
        (2 pi / sqrt(q1 q2)) E[phi phi] = rho (pi/2 + c) + sqrt(sin a_1 sin a_2) (cos c + k_1 k_2 rho^2 / cos c).
    Its three terms fall from the means of those at (q1, q1) and (q2, q2), by parts none of which cancels but for large
    variances, where the second takes from the first: then q1 + q2 multiplies a rounding. The mean is above the root of
    the product by half the square of the difference of the roots.
    """
    pair = arcs(q1, q2, distance)
    one, two = pair.one, pair.two
    square, share, tangents = pair.apart**2, one.share * two.share, one.tangent + two.tangent
    first = distance * (math.pi / 2 + one.half + two.half - pair.lag) + pair.lag
    second = pair.opened / (pair.rest + pair.cosine) + 2 * pair.rest * (share * square)
    second = share * (pair.cosine * pair.roots_apart**2 - tangents * second)
    (lobe1, cosine1), (lobe2, cosine2) = _lobe(one), _lobe(two)
    slope, above = _lobes_slope(one, two), pair.cosine + cosine1 * cosine2
    falls = (square + pair.opened) * ((1 / cosine1) * (1 / cosine2)) + pair.bent * above
    third = 2 * pair.product * (one.small * two.small) * falls / (pair.cosine * above)
    third = third + safe_quotient(pair.apart * slope, lobe1 + lobe2) ** 2
    turned = share * (1 + pair.product**2) * (1 - 2 * share * tangents**2)
    apart = pair.halves_apart + pair.apart * (turned + slope)
    above_root = (apart / (_root_of_mean(q1) + _root_of_mean(q2))) ** 2
    return geometric_mean(q1, q2) / (2 * math.pi) * (first + second + third - above_root)


def _root_of_mean(q: jax.Array) -> jax.Array:
    return safe_sqrt(math.pi * _gelu_share(q, q))


def _lobe(side: Arc) -> tuple[jax.Array, jax.Array]:
    """The root of V = sin(a) k^2 / (2 cos a) = t (1 - t)^3 / ((1 + t^2)^2 (1 + t)), and sqrt(1 - t^2)."""
    cosine = jnp.sqrt(side.rest * (2 - side.rest))
    return side.root * side.small / cosine, cosine


def _lobes_slope(one: Arc, two: Arc) -> jax.Array:
    """The slope (V_1 - V_2) / (t_1 - t_2) of V as in `_lobe`, a quotient of polynomials of u = 1 - t.

    With V = n / e it is -([n] - V_2 [e]) / e_1 for the slopes [n] of n = u^3 - u^4 and [e] of
    e = 8 - 20 u + 24 u^2 - 16 u^3 + 6 u^4 - u^5 over u: polynomials of u_1 whose coefficients belong to u_2.
    """
    u, below = two.rest, (1 + two.tangent**2) ** 2 * (1 + two.tangent)
    coefficients, of_n, of_e = list[jax.Array](), jnp.zeros_like(u), jnp.zeros_like(u)
    for n, e in ((0, -1), (-1, 6), (1, -16), (0, 24), (0, -20)):
        of_n, of_e = of_n * u + n, of_e * u + e
        coefficients.append((of_n * below - two.tangent * u**3 * of_e) / below)  # the quotient last, as in `arc`
    total = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * one.rest + coefficient
    return total * (-1 / ((1 + one.tangent**2) ** 2 * (1 + one.tangent)))


def gelu_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi' phi'] at rho = 1."""
    return gelu_orthant(q1, q2) + geometric_mean(q1, q2) * _gelu_slope(q1, q2, 1 + q1 + q2)


def gelu_derivative(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """E[phi' phi'], see `activations.Gelu`: in the angles of `arcs` at p = q, and with k = 1 / (1 + q), over 2 pi
    pi/2 + c + (2 m rho / r) (k_1 + k_2 + ((1 - t_1)(1 - t_2) / r)^2).
    """
    pair = arcs(q1, q2, distance)
    one, two, inverse = pair.one, pair.two, 1 / pair.cosine
    angle = math.pi / 2 + one.half + two.half - pair.lag
    weight = one.small + two.small + (one.rest * two.rest * inverse) ** 2
    return (angle + 2 * pair.product * (1 - distance) * inverse * weight) / (2 * math.pi)


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
