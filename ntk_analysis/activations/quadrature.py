"""Expectations of any function of one or of two Gaussians, and of its slope, with bounds of their errors.

Of one Gaussian: Gauss-Legendre rules between the edges of the function's `panels` and of panels of the density, merged
for every variance. Of two: with the Hermite coefficients a_k(q) of f(sqrt(q) z), Mehler's formula
    E[f(u) f(v)] = sum_k a_k(q1) a_k(q2) rho^k,
whose rest after `TERMS` terms is at most sqrt(R1 R2) |rho|^TERMS, R = E[f^2] - sum_k a_k^2 the squares left out. Where
that is too much (|rho| near 1, and a function with kinks or one that is steep for the variance), the pair is integrated
over the plane: u by panels, and v given u.

Arrays have a leading axis of two, for the function and for its slope, which share nodes and programs.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations.angles import geometric_mean, into_range, opposite_error, safe_divide, safe_sqrt
from ntk_analysis.activations.panels import TOLERANCES, Panels, panels
from ntk_analysis.common.precision import HeldArray

Function: TypeAlias = Callable[[jax.Array], jax.Array]
Horner: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]

TERMS = {"float64": 256, "float32": 128}
WIDTH = 0.75  # of the density's panels, in deviations: 12 nodes resolve the Hermite polynomial 256 on each
FIRST = -12.0  # h_k(z) exp(-z^2/2) is below a rounding beyond
DENSITY_EDGES = np.linspace(FIRST, -FIRST, round(-2 * FIRST / WIDTH) + 1)
ENOUGH = 9.0  # deviations up to which the function has to be known; the density beyond holds 1e-19
NODES, FEWER = 12, 9  # of a panel; what a rule of fewer nodes changes is the error stated
BLOCK = 16  # terms that are skipped together where they are 0
LOCAL = 20  # Legendre polynomials that a Hermite polynomial is on one of these panels
AVERAGES_AT_ONCE = 2048  # variances
TABULATED = 64  # variances in a call of a program
VARIANCES_AT_ONCE = 64  # whose nodes stay in a processor's cache

PAIR_TOLERANCE = 1e-11  # of the panels of a pair
PAIR_EDGES = np.array([-8.5, -6, -4.2, -2.8, -1.4, 0, 1.4, 2.8, 4.2, 6, 8.5])  # of the density's panels, for a pair
PAIR_NODES = 12
# around what v's kinks are for u, in deviations of v given u
LAYERS = np.array([-8.5, -5, -2.7, -1.2, 0, 1.2, 2.7, 5, 8.5])
FEW_PAIRS = 2**10  # a pair over the plane takes milliseconds: beyond, the series and its error stand
# relative errors of the series beyond which a pair is in doubt, for few pairs and for many
RESOLVED = {"float64": (1e-11, 1e-5), "float32": (1e-3, 1e-2)}
NUMBERS_AT_ONCE = 2**22
TINY = {"float64": 1e-75, "float32": 1e-11}  # deviations below which are this: edges over its cube stay finite


class Averages(NamedTuple):
    """Averages over a Gaussian of a function and of its slope, for variances of shape (...).

    Attributes:
        mean: (2, ...) E[f].
        square: (2, ...) E[f^2].
        error: (2, ...) relative error of `square`, and of `mean` to its root; NaN where the function is not known as
            far as Gaussians of this variance reach, as are the others.
    """

    mean: HeldArray
    square: HeldArray
    error: HeldArray


class Series(NamedTuple):
    """Hermite coefficients of f(sqrt(q) z) over sqrt(E[f^2]), for variances q of shape (...).

    Attributes:
        unit: (terms, 2, ...) the coefficients, of which the squares sum to 1 - rest.
        rest: (2, ...) what they leave out.
        slope_rest: (2, ...) sum of k a_k^2 over those left out; inf where it is not known.
    """

    unit: jax.Array
    rest: jax.Array
    slope_rest: jax.Array


def averages(function: Function, kinks: tuple[float, ...], variance: jax.Array) -> Averages:
    """E[f] and E[f^2] of the function and its slope, and their errors.

    The error is what a rule of fewer nodes changes, the residual of the panels and rounding.
    """
    found = panels(function, kinks)
    if variance.size > AVERAGES_AT_ONCE:
        flat = jax.lax.map(
            functools.partial(averages, function, kinks), variance.reshape(-1), batch_size=AVERAGES_AT_ONCE
        )
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1).reshape(2, *variance.shape), flat)
    root = safe_sqrt(variance)[..., None]
    edges = _merged(_scaled(found, root), DENSITY_EDGES)

    def moments(nodes: int) -> tuple[jax.Array, jax.Array]:
        z, weight = _between(edges, nodes)
        values = with_slope(function, root * z)
        weight = (weight * _density(z))[None]
        return jnp.sum(weight * values, axis=-1), jnp.sum(weight * values**2, axis=-1)

    (mean, square), (rough_mean, rough) = moments(NODES), moments(FEWER)
    changed = jnp.abs(safe_divide(rough - square, square, 0.0))
    changed = jnp.maximum(changed, jnp.abs(safe_divide(rough_mean - mean, safe_sqrt(square), 0.0)))
    residual = 8 * found.tolerance if found.tolerance > TOLERANCES[0] else 0.0  # the tightest is no more than rounding
    error = jax.lax.stop_gradient(changed + residual + (16 + 512 * jnp.minimum(variance, 1))[None] * _eps(variance))
    # a factor, so that derivatives are NaN too where nothing is known
    known = jnp.where(variance * ENOUGH**2 <= found.reach**2, jnp.ones_like(variance), jnp.nan)[None]
    return Averages(*(values * known for values in (mean, square, error)))


def tabulated(function: Function, kinks: tuple[float, ...], variance: np.ndarray) -> Averages:
    """`averages` of NumPy float64 variances: one program for any number of them."""
    return _in_rows(_averages, function, kinks, variance)


def in_variance(function: Function, kinks: tuple[float, ...], variance: np.ndarray) -> Averages:
    """The derivatives of `tabulated` in the variance."""
    return _in_rows(_derivatives, function, kinks, variance)


def _in_rows(
    program: Callable[..., Averages], function: Function, kinks: tuple[float, ...], variance: np.ndarray
) -> Averages:
    flat = np.asarray(variance, np.float64).reshape(-1)
    padded = np.append(flat, np.ones(-len(flat) % TABULATED)).reshape(-1, TABULATED)
    with jax.enable_x64(True):
        rows = [program(function, kinks, row) for row in padded]
    mean, square, error = (
        np.concatenate(parts, axis=-1)[..., : len(flat)].reshape(2, *np.shape(variance))
        for parts in zip(*rows, strict=True)
    )
    return Averages(mean, square, error)  # type: ignore[arg-type]  # NumPy, for a NumPy caller


_averages = jax.jit(averages, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _derivatives(function: Function, kinks: tuple[float, ...], variance: jax.Array) -> Averages:
    _, found = jax.jvp(functools.partial(averages, function, kinks), (variance,), (jnp.ones_like(variance),))
    return found


def pair(
    function: Function, kinks: tuple[float, ...], variance1: jax.Array, variance2: jax.Array, *, distance: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[Averages, Averages]]:
    """The fields of `duals.Moment` at 1 - rho = distance, (2, ...), and the averages of u and of v.

    At variance 0 of an f with f(0) = 0, where the distance is 0/0, the limit of a linear f stands: `distance` itself.
    """
    shapes = variance1.shape, variance2.shape
    variance1, variance2, distance = _same_rank(variance1, variance2, distance)
    both = jnp.concatenate([variance1.reshape(-1), variance2.reshape(-1)])  # one program for both sides
    of_one = averages(function, kinks, both)
    of_both = of_one, series(function, kinks, both, of_one)
    one1, series1 = jax.tree.map(lambda x: x[..., : variance1.size].reshape(*x.shape[:-1], *variance1.shape), of_both)
    one2, series2 = jax.tree.map(lambda x: x[..., variance1.size :].reshape(*x.shape[:-1], *variance2.shape), of_both)
    # at its ends the distance has another derivative: of the series, coefficients that are left out count k times
    end = (distance == 0) | (distance == 2)
    held = jnp.where(end, jax.lax.stop_gradient(distance), distance)
    found, error = _by_series(series1, series2, variance1 == variance2, held)
    found, error = _corrected(function, kinks, (variance1, variance2, held), (one1.square, one2.square), found, error)
    norms = safe_sqrt(one1.square) * safe_sqrt(one2.square)
    found = found + _rising_at_ends(function, kinks, distance, variance1, variance2, norms)
    known = one1.error + one2.error
    # coefficients of variances that are alike are off alike
    step = jnp.abs(variance1 - variance2) / jnp.maximum(jnp.maximum(variance1, variance2), TINY[variance1.dtype.name])
    coefficients = (known + 2 * panels(function, kinks).tolerance) * step[None] * safe_sqrt(found)
    error = jax.lax.stop_gradient(error + known * jnp.maximum(found, 0) + coefficients)
    found = into_range(found + 0 * known)  # NaN where the averages are
    value = norms * (1 - found)
    side1, side2 = (
        Averages(*(x.reshape(2, *shape) for x in one)) for one, shape in zip((one1, one2), shapes, strict=True)
    )
    return (value, found, error, error + known), (side1, side2)


def with_slope(function: Function, x: jax.Array) -> jax.Array:
    """The function and its slope at x, (2, ...)."""
    return jnp.stack(jax.jvp(function, (x,), (jnp.ones_like(x),)))


def series(function: Function, kinks: tuple[float, ...], variance: jax.Array, of_one: Averages) -> Series:
    """Hermite coefficients for variances (n,), and what they leave out."""
    found, terms = panels(function, kinks), TERMS[variance.dtype.name]
    at_once = min(VARIANCES_AT_ONCE, variance.size)
    chunks = jnp.pad(variance, (0, -variance.size % at_once), mode="edge").reshape(-1, at_once)
    coefficients = jax.lax.map(functools.partial(_coefficients, found, function, terms), chunks)
    coefficients = coefficients.reshape(-1, terms, 2)[: variance.size]
    linear = jnp.zeros((terms, 1, 1), variance.dtype).at[1].set(1)
    unit = safe_divide(jnp.moveaxis(coefficients, 0, -1), safe_sqrt(of_one.square)[None], linear)
    rest = _rest(unit)
    # sum k a_k^2 = q E[f'^2] of a function that does not jump, and what the known terms leave of it
    number = jnp.arange(terms, dtype=variance.dtype)[:, None]
    whole = safe_divide(variance * of_one.square[1], of_one.square[0], 1.0)
    noise = 16 * _noise(variance) * jnp.maximum(whole, 1)  # errors of a_k count k times
    left = whole - jnp.sum(number * unit[:, 0] ** 2, axis=0)
    smooth = 2 * terms * rest  # coefficients that fall off as fast as can be seen
    unknown = jnp.where(rest > _noise(variance), jnp.inf, smooth)
    of_function = unknown[0] if found.jumps else jnp.where(left > noise, left + noise, jnp.minimum(noise, smooth[0]))
    return Series(unit, rest, jax.lax.stop_gradient(jnp.stack([of_function, unknown[1]])))


def _coefficients(found: Panels, function: Function, terms: int, variance: jax.Array) -> jax.Array:
    """E[f(sqrt(q) z) h_k(z)] for variances (n,), (n, terms, 2), h_k the orthonormal Hermite polynomials.

    In each of the density's panels h_k(z) times the density is a sum of Legendre polynomials, so that f is integrated
    against these few, and a matrix that no variance changes makes all h_k of them.
    """
    root = safe_sqrt(variance)[:, None]
    edges = _merged(_scaled(found, root), DENSITY_EDGES)
    z, weight = _between(edges, NODES)
    panel = jnp.clip(jnp.floor(((edges[:, 1:] + edges[:, :-1]) / 2 - FIRST) / WIDTH), 0, len(DENSITY_EDGES) - 2)
    middle = FIRST + WIDTH * (panel + 0.5)
    # nodes first: XLA adds arrays fast, and sums 12 numbers of one float32 array slowly
    inside = _nodes_first((z.reshape(*panel.shape, NODES) - middle[..., None]) * (2 / WIDTH))
    weighted = _nodes_first((weight[None] * with_slope(function, root * z)).reshape(2, *panel.shape, NODES))

    def legendre(two: tuple[jax.Array, jax.Array], degree: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, here = two
        after = ((2 * degree + 1) * inside * here - degree * before) / (degree + 1)
        return (here, after), functools.reduce(jnp.add, weighted * here[:, None])

    start = jnp.zeros_like(inside), jnp.ones_like(inside)
    _, local = jax.lax.scan(legendre, start, jnp.arange(LOCAL, dtype=z.dtype))
    local = local.reshape(LOCAL, 2, *panel.shape)
    belongs = (panel[..., None] == jnp.arange(len(DENSITY_EDGES) - 1, dtype=z.dtype)[None, None]).astype(z.dtype)
    of_panels = jnp.einsum("lcns,nsp->ncpl", local, belongs, precision="highest")
    return jnp.einsum("ncpl,kpl->nkc", of_panels, jnp.asarray(_hermite(terms), z.dtype), precision="highest")


def _nodes_first(x: jax.Array) -> jax.Array:
    """(..., variances, panels, nodes) as (nodes, ..., variances * panels)."""
    return jnp.moveaxis(x.reshape(*x.shape[:-3], -1, NODES), -1, 0)


@functools.cache
def _hermite(terms: int) -> np.ndarray:
    """h_k times the normal density in each of its panels, as Legendre coefficients: (terms, panels, LOCAL)."""
    points, weights = np.polynomial.legendre.leggauss(2 * LOCAL)
    z = (DENSITY_EDGES[:-1, None] + DENSITY_EDGES[1:, None]) / 2 + WIDTH / 2 * points
    half = np.exp(-(z**2) / 4) / (2 * math.pi) ** 0.25  # h_k times this is bounded
    basis = [half, z * half]
    for k in range(1, terms - 1):
        basis.append((z * basis[k] - math.sqrt(k) * basis[k - 1]) / math.sqrt(k + 1))
    legendre = np.polynomial.legendre.legvander(points, LOCAL - 1) * (weights[:, None] * (np.arange(LOCAL) + 0.5))
    return np.asarray(np.stack(basis) * half @ legendre)


def _by_series(left: Series, right: Series, equal: jax.Array, distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cosine distance from Hermite coefficients a and b of unit sum of squares, and the bound of what is left out.

    1/2 sum (a_k - b_k)^2 + sum a_k b_k (1 - rho^k) + (R1 + R2)/2 - sqrt(R1 R2) rho^terms: nothing cancels. In the
    second sum 1 - rho^k = distance (1 + rho + ... + rho^(k - 1)): the distance times a polynomial in rho whose
    coefficients are the tail sums of a_k b_k, one Horner pass from the top.
    """
    equal, distance = equal[None], distance[None]
    correlation = 1 - distance
    shape = jnp.broadcast_shapes(left.rest.shape, right.rest.shape, distance.shape)

    def horner(state: Horner, two: list[jax.Array]) -> tuple[Horner, None]:
        polynomial, tail, mismatch = state
        a, b = two
        tail = tail + a * b
        return (polynomial * correlation + tail, tail, mismatch + (a - b) ** 2), None

    a, b = left.unit, right.unit
    zero = jnp.zeros(shape, distance.dtype)
    start = (zero, zero, zero + (a[0] - b[0]) ** 2)
    blocks = [jnp.concatenate([x[1:], 0 * x[:1]]).reshape(-1, BLOCK, *x.shape[1:]) for x in (a, b)]

    def block(state: Horner, terms: list[jax.Array]) -> tuple[Horner, None]:
        # the highest terms of a smooth function are 0, and leave the state, which starts at 0, as it is
        felt = jnp.maximum(*(jnp.max(jnp.abs(x)) for x in terms)) > _eps(distance)
        felt = felt | jnp.any(state[1] != 0)

        def summed() -> Horner:
            after, _ = jax.lax.scan(horner, state, terms, reverse=True)
            return after

        return jax.lax.cond(felt, summed, lambda: state), None

    (polynomial, _, mismatch), _ = jax.lax.scan(block, start, blocks, reverse=True)
    shared = safe_sqrt(left.rest) * safe_sqrt(right.rest)
    apart = (safe_sqrt(left.rest) - safe_sqrt(right.rest)) ** 2 / 2
    fading = jnp.abs(correlation) ** len(a)  # the number of terms is even
    found = mismatch / 2 + distance * polynomial + apart + shared * (1 - fading)
    left_out = 2 * shared * fading
    steep = jnp.where(distance > 0, distance * safe_sqrt(left.slope_rest) * safe_sqrt(right.slope_rest), 0)
    left_out = jnp.where(equal, jnp.minimum(left_out, steep), left_out)
    # of the coefficients, which are small beside the largest of an f that is nearly constant, and of the sums
    steps = jnp.where(equal, safe_sqrt(distance), 1) * safe_sqrt(found)
    rounding = 16 * _eps(distance) * (steps + jnp.maximum(found, 0))
    guessed = _rest_error(left.rest, right.rest, equal, 1 - fading)
    return found, jax.lax.stop_gradient(left_out + rounding + guessed + opposite_error(distance))


def _rest_error(rest1: jax.Array, rest2: jax.Array, equal: jax.Array, share: jax.Array) -> jax.Array:
    """Error of the distance from errors of the rests, which are 1 - sum to rounding, or no more than a bound."""
    noise = _noise(rest1)
    relative1, relative2 = (jnp.where(rest > noise, noise / 8 / jnp.maximum(rest, noise), 1) for rest in (rest1, rest2))
    root1, root2 = safe_sqrt(rest1), safe_sqrt(rest2)
    bounds = jnp.where(rest1 > noise, 0, rest1) + jnp.where(rest2 > noise, 0, rest2)
    apart = bounds / 2 + jnp.abs(root1 - root2) * (relative1 * root1 + relative2 * root2) / 2
    return root1 * root2 * share * (relative1 + relative2) + jnp.where(equal, 0, apart)


def _corrected(
    function: Function,
    kinks: tuple[float, ...],
    arguments: tuple[jax.Array, ...],
    squares: tuple[jax.Array, jax.Array],
    found: jax.Array,
    error: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`found` and `error`, (2, ...), with pairs that the series leaves in doubt, if they are few, over the plane."""
    planes, shape = panels(function, kinks, PAIR_TOLERANCE), found.shape
    count = math.prod(shape[1:])
    few, many = RESOLVED[found.dtype.name]
    doubtful = error > jnp.maximum((few if count <= FEW_PAIRS else many) * found, _plane_error(planes, found))
    doubtful = jnp.any(doubtful, axis=0).reshape(-1)

    @jax.checkpoint
    def integrated(chunk: list[jax.Array]) -> jax.Array:
        doubtful, q1, q2, distance, *others = chunk
        one, other, found, error = (jnp.stack(others[i : i + 2]) for i in range(0, 8, 2))
        # the others stand at a pair with finite derivatives, which are multiplied by 0
        q1, q2, distance = (jnp.where(doubtful, x, other) for x, other in ((q1, 1.0), (q2, 1.0), (distance, 0.5)))
        one, other = (jnp.where(doubtful[None], x, 1.0) for x in (one, other))
        end = (distance == 0) | (distance == 2)
        inner = jnp.where(end, jax.lax.stop_gradient(distance), distance)  # at its ends s has no derivative
        new = _over_the_plane(planes, function, q1, q2, inner, one, other)
        bound = _plane_error(planes, new) + opposite_error(distance)[None]
        better = doubtful[None] & (bound < error)
        return jnp.where(better[None], jnp.stack([new, bound]), jnp.stack([found, error]))

    def kept(chunk: list[jax.Array]) -> jax.Array:
        return jnp.stack(chunk[-4:]).reshape(2, 2, -1)

    def all_pairs() -> tuple[jax.Array, jax.Array]:
        numbers = [jnp.broadcast_to(x, shape[1:]).reshape(-1) for x in arguments]
        numbers += [jnp.broadcast_to(x, shape).reshape(2, -1)[i] for x in (*squares, found, error) for i in range(2)]
        new = _of_chunks(doubtful, numbers, integrated, kept, NUMBERS_AT_ONCE // _numbers(planes))
        return new[0].reshape(shape), new[1].reshape(shape)

    number = jnp.sum(doubtful)
    new, bound = jax.lax.cond((number > 0) & (number <= FEW_PAIRS), all_pairs, lambda: (found, error))
    return new, jax.lax.stop_gradient(bound)


def _over_the_plane(
    planes: Panels,
    function: Function,
    variance1: jax.Array,
    variance2: jax.Array,
    distance: jax.Array,
    square1: jax.Array,
    square2: jax.Array,
) -> jax.Array:
    """Half of E[(f(u)/|f(u)| - f(v)/|f(v)|)^2] for pairs (n,), (2, n): a sum of squares, u on the outer of two rules.

    v = sqrt(q2) (rho z + s y) for u = sqrt(q1) z, with s = sqrt(1 - rho^2). The mean over y of a function with a kink,
    or of one that is steep for the variance, bends within s of where v meets it: u has panels there too.
    """
    larger = variance1 >= variance2  # the same order for (u, v) and (v, u)
    q1, q2 = jnp.where(larger, variance1, variance2), jnp.where(larger, variance2, variance1)
    norm1, norm2 = jnp.where(larger[None], square1, square2), jnp.where(larger[None], square2, square1)
    tiny = TINY[q1.dtype.name]
    root1, root2 = (jnp.maximum(safe_sqrt(q), tiny)[:, None] for q in (q1, q2))
    rho = (1 - distance)[:, None]
    slant = jnp.where(jnp.abs(rho) < 0.1, 1, rho)  # such pairs have a series
    spread = jnp.maximum(safe_sqrt(distance * (2 - distance))[:, None], tiny)
    edges, kinks, layers = (jnp.asarray(np.array(x), q1.dtype)[None] for x in (planes.edges, planes.centers, LAYERS))
    bends = (kinks / (slant * root2))[..., None] + layers[None] * (spread / jnp.abs(slant))[..., None]
    outer = jnp.concatenate([edges / root1, edges / (slant * root2), bends.reshape(len(q1), -1)], axis=-1)
    z, weight = _between(_merged(outer, PAIR_EDGES), PAIR_NODES)
    inner = (edges[None] / root2[..., None] - rho[..., None] * z[..., None]) / spread[..., None]
    y, inner_weight = _between(_merged(inner, PAIR_EDGES), PAIR_NODES)
    first = with_slope(function, root1 * z) * _inverse_root(norm1)[..., None]
    second = with_slope(function, root2[..., None] * (rho[..., None] * z[..., None] + spread[..., None] * y))
    second = second * _inverse_root(norm2)[..., None, None]
    given = jnp.sum((inner_weight * _density(y))[None] * (first[..., None] - second) ** 2, axis=-1)
    return jnp.sum((weight * _density(z))[None] * given, axis=-1) / 2


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rising_at_ends(
    function: Function,
    kinks: tuple[float, ...],
    distance: jax.Array,
    variance1: jax.Array,
    variance2: jax.Array,
    norms: jax.Array,
) -> jax.Array:
    """0 for the cosine distances of f and f', (2, ...), with their derivatives by a distance of 0 or 2.

    The derivative of E[f f] in the covariance is E[f' f'] (Price), and that of E[f' f'] is E[f'' f'']. Of what jumps it
    is infinite, to all sides alike: 0 stands there, the symmetric derivative by the inputs.
    """
    del function, kinks, distance, variance1, variance2
    return jnp.zeros_like(norms)


@_rising_at_ends.defjvp
def _rising_at_ends_jvp(
    function: Function, kinks: tuple[float, ...], primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    distance, variance1, variance2, norms = jax.lax.stop_gradient(primals)
    planes, shape = panels(function, kinks, PAIR_TOLERANCE), norms.shape
    end = jnp.broadcast_to((distance == 0) | (distance == 2), shape[1:])
    numbers = [jnp.broadcast_to(x, shape[1:]).reshape(-1) for x in (distance, variance1, variance2)]

    def moments() -> jax.Array:
        at_once = NUMBERS_AT_ONCE // (2 * len(planes.edges) + len(PAIR_EDGES)) // PAIR_NODES
        found = _of_chunks(
            end.reshape(-1),
            numbers,
            lambda chunk: _along_the_line(planes, function, *chunk[1:]),
            lambda chunk: jnp.zeros((2, len(chunk[0])), norms.dtype),
            at_once,
        )
        return found.reshape(shape)

    covariance = geometric_mean(variance1, variance2)[None] * jax.lax.cond(
        jnp.any(end), moments, lambda: jnp.zeros_like(norms)
    )
    exists = end[None] & jnp.array([not planes.jumps, not planes.bends]).reshape(2, *(1,) * end.ndim)
    linear = jnp.array([1, 0], norms.dtype).reshape(2, *(1,) * end.ndim)
    slopes = jnp.where(exists, safe_divide(covariance, norms, linear), 0)
    return jnp.zeros_like(norms), slopes * tangents[0][None]


def _along_the_line(
    planes: Panels, function: Function, distance: jax.Array, variance1: jax.Array, variance2: jax.Array
) -> jax.Array:
    """E[f' f'] and E[f'' f''] of pairs (n,) of distance 0 or 2, (2, n)."""
    tiny = TINY[distance.dtype.name]
    roots = [jnp.maximum(safe_sqrt(variance), tiny)[:, None] for variance in (variance1, variance2)]
    roots[1] = jnp.where(distance[:, None] > 1, -roots[1], roots[1])
    edges = jnp.asarray(np.array(planes.edges), distance.dtype)[None]
    z, weight = _between(_merged(jnp.concatenate([edges / root for root in roots], axis=-1), PAIR_EDGES), PAIR_NODES)

    def slope(x: jax.Array) -> jax.Array:
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    first, second = (with_slope(slope, root * z) for root in roots)
    return jnp.sum((weight * _density(z))[None] * first * second, axis=-1)


def _of_chunks(
    wanted: jax.Array,
    numbers: list[jax.Array],
    compute: Callable[[list[jax.Array]], jax.Array],
    keep: Callable[[list[jax.Array]], jax.Array],
    at_once: int,
) -> jax.Array:
    """(..., n): compute(chunk) of chunks of (wanted, *numbers), each (n,), that hold a wanted one, else keep(chunk).

    Those wanted come first, so that the others are passed over together.
    """
    count = len(wanted)
    at_once = max(1, min(count, at_once))
    steps = -(-count // at_once)
    order = jnp.argsort(~wanted, stable=True) if steps > 1 else jnp.arange(count)
    padded = jnp.concatenate([order, jnp.full(steps * at_once - count, order[-1], order.dtype)])
    chunks = [x[padded].reshape(steps, at_once) for x in (wanted, *numbers)]
    new = jax.lax.map(lambda chunk: jax.lax.cond(jnp.any(chunk[0]), compute, keep, chunk), chunks)
    new = jnp.moveaxis(new, 0, -2)
    new = new.reshape(*new.shape[:-2], -1)[..., :count]
    return jnp.zeros_like(new).at[..., order].set(new) if steps > 1 else new


def _plane_error(planes: Panels, found: jax.Array) -> jax.Array:
    """Bound of the error of `_over_the_plane` where it finds this: rounding of a difference, and of the panels."""
    found = jnp.maximum(found, 0)
    return 16 * _eps(found) * safe_sqrt(found) + 400 * planes.tolerance * found


def _numbers(planes: Panels) -> int:
    """Nodes of one pair."""
    density = len(PAIR_EDGES) - 1
    outer = 2 * len(planes.edges) + len(planes.centers) * len(LAYERS) + density
    return outer * (len(planes.edges) + density) * PAIR_NODES**2


def _inverse_root(square: jax.Array) -> jax.Array:
    return safe_divide(jnp.ones_like(square), safe_sqrt(square), 0.0)


def _scaled(found: Panels, root: jax.Array) -> jax.Array:
    """The panels' edges in deviations, for roots (..., 1)."""
    return _last(np.array(found.edges), root.ndim, root.dtype) / jnp.maximum(root, TINY[root.dtype.name])


def _last(x: np.ndarray, rank: int, dtype: jnp.dtype) -> jax.Array:
    """Numbers (m,) along the last of `rank` axes."""
    return jnp.asarray(x, dtype).reshape(*(1,) * (rank - 1), -1)


def _merged(edges: jax.Array, density_edges: np.ndarray) -> jax.Array:
    """Edges (..., m) together with the density's, in order."""
    last = float(density_edges[-1])
    fixed = jnp.broadcast_to(_last(density_edges, edges.ndim, edges.dtype), (*edges.shape[:-1], len(density_edges)))
    return jnp.sort(jnp.concatenate([jnp.clip(edges, -last, last), fixed], axis=-1), axis=-1)


def _between(edges: jax.Array, nodes: int) -> tuple[jax.Array, jax.Array]:
    """Gauss-Legendre nodes and weights, (..., n), between neighbouring edges (..., m)."""
    points, weights = (_last(x, edges.ndim + 1, edges.dtype) for x in np.polynomial.legendre.leggauss(nodes))
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    z = middle[..., None] + half[..., None] * points
    flat = (*edges.shape[:-1], -1)
    return z.reshape(flat), (half[..., None] * weights).reshape(flat)


def _density(z: jax.Array) -> jax.Array:
    return jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _rest(unit: jax.Array) -> jax.Array:
    """Squares that the coefficients (terms, ...) leave of 1; by how they fall off where that is below rounding."""
    noise = _noise(unit)
    left = 1 - jnp.sum(unit**2, axis=0)
    eighth = len(unit) // 8
    last, before = (jnp.sum(part**2, axis=0) for part in (unit[-eighth:], unit[-2 * eighth : -eighth]))
    ratio = jnp.minimum(safe_divide(last, before, 0.0), 0.9)
    return jnp.where(left > noise, left, jax.lax.stop_gradient(jnp.minimum(noise, 10 * last / (1 - ratio))))


def _noise(x: jax.Array) -> float:
    return 256 * _eps(x)


def _eps(x: jax.Array) -> float:
    return float(np.finfo(x.dtype).eps)


def _same_rank(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    rank = max(array.ndim for array in arrays)
    return tuple(array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays)
