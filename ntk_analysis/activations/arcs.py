"""The arcs of erf and GELU: angles of two Gaussians, with no difference of nearly equal numbers but of their variances.

To a variance p belong a = arcsin(p / (1 + p)) and t = tan(a / 2); to a pair, the mean b of its angles a_1 and a_2, and
c with sin c = sqrt(sin a_1 sin a_2) rho. Halves of angles make all of this algebraic: with m = sqrt(t_1 t_2) and
d = 1 - rho
    r = cos c / (cos(a_1 / 2) cos(a_2 / 2)) = sqrt((1 - m^2)^2 + (t_1 - t_2)^2 + 4 m^2 d (2 - d)),
    tan((b - c) / 2) = ((sqrt(t_1) - sqrt(t_2))^2 + 2 m d) / (1 - m^2 + r),
which are sums of terms that are not negative. Differences of the t are those of p_1 and p_2 over sums.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import acute_angle, difference, quadrant_angle, safe_quotient, safe_sqrt


class Arc(NamedTuple):
    """What belongs to a variance p; roots and quotients come last, see `angles.safe_sqrt`.

    Attributes:
        width: w = sqrt(1 + 2 p).
        tangent: t = tan(a / 2) = (w - 1) / (w + 1).
        root: sqrt(t).
        rest: 1 - t = 2 / (1 + w), which keeps its digits at large variances.
        share: cos(a / 2)^2 = 1 / (1 + t^2).
        half: a / 2.
        small: 1 / (1 + p) = 1 - sin a.
    """

    width: jax.Array
    tangent: jax.Array
    root: jax.Array
    rest: jax.Array
    share: jax.Array
    half: jax.Array
    small: jax.Array


class Arcs(NamedTuple):
    """What belongs to a pair at a cosine distance d.

    Attributes:
        one: arc of the first variance.
        two: arc of the second variance.
        apart: t_1 - t_2, and 0 within rounding: another loop may compute a duplicate's variance.
        roots_apart: sqrt(t_1) - sqrt(t_2).
        product: m = sqrt(t_1 t_2).
        rest: 1 - m^2.
        bent: d (2 - d) = 1 - rho^2.
        opened: (t_1 - t_2)^2 + 4 m^2 d (2 - d) = r^2 - (1 - m^2)^2.
        cosine: r.
        lag: b - c.
    """

    one: Arc
    two: Arc
    apart: jax.Array
    roots_apart: jax.Array
    product: jax.Array
    rest: jax.Array
    bent: jax.Array
    opened: jax.Array
    cosine: jax.Array
    lag: jax.Array

    @property
    def halves_apart(self) -> jax.Array:
        """The difference (a_1 - a_2) / 2."""
        return acute_angle(self.apart / (1 + self.product**2))


def arc(p: jax.Array) -> Arc:
    """The arc of a variance."""
    width = jnp.sqrt(1 + 2 * p)
    tangent = p / (1 + p + width)
    return Arc(
        width,
        tangent,
        safe_sqrt(p) / jnp.sqrt(1 + p + width),
        2 / (1 + width),
        1 / (1 + tangent**2),
        acute_angle(tangent) * width / width,
        1 / (1 + p),
    )


def arcs(p1: jax.Array, p2: jax.Array, distance: jax.Array) -> Arcs:
    """The arcs of a pair."""
    one, two = arc(p1), arc(p2)
    apart = difference(p1, p2) * (one.rest * two.rest) / (one.width + two.width)
    roots_apart = safe_quotient(apart, one.root + two.root)
    product, rest = one.root * two.root, one.rest + two.rest - one.rest * two.rest
    bent = distance * (2 - distance)
    opened = apart**2 + (4 * product**2) * bent
    cosine = jnp.sqrt(rest**2 + opened)
    lag = 2 * quadrant_angle(roots_apart**2 + 2 * product * distance, rest + cosine)
    return Arcs(one, two, apart, roots_apart, product, rest, bent, opened, cosine, lag)
