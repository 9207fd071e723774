"""The series of `angle_series`, fitted to the recursion through a network's layers and measured against it.

The recursion is the network's own `kernel`, in float64 on pairs of one variance at some thousand angles.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.chebyshev import chebval

from ntk_analysis.common.in_numpy import in_numpy
from ntk_analysis.infinite.angle_series import NEAR_ANGLE, AngularFunction, affine
from ntk_analysis.infinite.distances import NEAR
from ntk_analysis.infinite.kernel import HasKernel, Kernel, Law, Units

TOLERANCE = {"float32": 2e-6, "float64": 2e-12}  # largest error at which the series replace the recursion
DEGREES = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)
SHIFTS = (0.03, 0.1, 0.3, 1.0, 3.0)
EVEN = 1e-12  # largest f at pi of a network that maps x and -x to the same units
LARGEST_POWER = 8  # largest power of y; each power costs a rounding
FIRST_EXPONENT = {"float32": -100, "float64": -200}
LONGEST_IN_NUMPY = 200_000_000  # steps times pairs beyond which a recursion is compiled: NumPy takes a second for these
ROUNDING = 2  # roundings eps that are added to the error measured in NumPy: XLA orders and fuses sums in another way
# f / d and theta branch at d = 0, 3 half-octaves from the middle of any octave, which takes 7 and 18 degrees; the theta
# of a chaotic network falls by decades within one octave where correlations settle
OCTAVE_DEGREE = {"float32": 14, "float64": 32}


class Values(NamedTuple):
    """Results of the recursion at cosine distances (n,): f and theta exp(-log_scale), float64.

    theta is a sum of K and other terms, and K has no more digits than the variance: `smallest` exp(log_scale). The
    variance, mean and law are those of a unit behind the layers.
    """

    distance: np.ndarray
    f: np.ndarray
    ntk: np.ndarray
    log_scale: float
    smallest: float
    variance: float
    mean: float
    law: Law

    def where(self, kept: slice | np.ndarray, distance: np.ndarray | None = None) -> "Values":
        """These of the values, at their own distances or at those given."""
        distance = self.distance if distance is None else distance
        return self._replace(distance=distance[kept], f=self.f[kept], ntk=self.ntk[kept])

    def parts(self, count: int) -> tuple["Values", "Values"]:
        """The first values, so many, and the others."""
        return self.where(slice(count)), self.where(slice(count, None))

    def folded(self, widest: float) -> "Values":
        """The values at angles from NEAR_ANGLE on, with the distances of angles up to `widest`."""
        distance = self.distance if widest == math.pi else np.minimum(self.distance, 2 - self.distance)
        return self.where(distance >= NEAR, distance)


@lru_cache(maxsize=64)
def angular_function(
    network: HasKernel, dtype: str, norm: float = 1.0, *, compiled: bool = True
) -> AngularFunction | None:
    """f and theta of a network to TOLERANCE[dtype], or None if no series reaches it.

    They are concrete numbers, even while a program is traced.

    Args:
        network: network of any depth, which is homogeneous or used at this norm only.
        dtype: dtype in which the series will be evaluated, "float32" or "float64".
        norm: |x|^2 / d of all inputs; it has no effect on a homogeneous network.
        compiled: whether the fit may compile the network where NumPy cannot compute it, which takes seconds to minutes;
            else None is returned then.
    """
    # the caller may be traced, but a thread of its own knows nothing of that: jax.ensure_compile_time_eval would
    # compile, one by one and in seconds, all operations of the recursion that do not depend on its arguments
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(_best, network, dtype, norm, compiled).result()


def _best(network: HasKernel, dtype: str, norm: float, compiled: bool) -> AngularFunction | None:
    if network.couples_batch is not False:  # single pairs do not have the statistics of a batch
        return None
    if network.masks_inputs:  # an angle of 0 does not tell an input from one that is equal
        return None
    with jax.enable_x64(True):
        found = [fitted(network, dtype, widest, norm, compiled=compiled) for widest in (math.pi, math.pi / 2)]
        fits = [fit for fit in found if fit is not None]
        if not fits:
            return None
        function, checks = min(fits, key=lambda fit: fit[0].far.shape[1])
        error = measured_error(function, checks, dtype)
    return replace(function, error=error) if error <= TOLERANCE[dtype] else None


def fitted(
    network: HasKernel, dtype: str, widest: float = math.pi, norm: float = 1.0, *, compiled: bool = True
) -> tuple[AngularFunction, tuple[Values, Values]] | None:
    """The function, its error not measured yet, and the recursion between its nodes, below NEAR and from there on."""
    octaves = 2.0 ** np.arange(FIRST_EXPONENT[dtype], math.frexp(NEAR)[1] + 1)
    inside, between = _nodes(OCTAVE_DEGREE[dtype]), np.array([-1, -0.51, 0.27, 0.93])
    checked = np.append(np.linspace(NEAR_ANGLE, math.pi - 1e-3, 400), np.geomspace(NEAR_ANGLE, 1, 101))
    count = len(octaves) * len(inside) + (len(octaves) - 1) * len(between)
    recursion = recursion_of(network, norm, count, compiled=compiled)
    if recursion is None:
        return None
    coincident = recursion(np.array([0.0, 2.0]))
    if widest < math.pi and coincident.f[1] > EVEN:
        return None
    below = np.outer(inside + 3, octaves / 4).ravel(), np.outer(between + 3, octaves[:-1] / 4).ravel()
    from_there = (
        np.concatenate([_cosine_distance(_angles(shift, widest)) for shift in SHIFTS]),
        _cosine_distance(checked).astype(dtype).astype(np.float64),
    )
    near, near_checks = recursion(np.concatenate(below)).parts(len(below[0]))
    far, far_checks = recursion(np.concatenate(from_there)).parts(len(from_there[0]))
    if not all(np.isfinite(values.f).all() and np.isfinite(values.ntk).all() for values in (coincident, near, far)):
        return None
    if coincident.variance == 0:
        return None
    expansion = _far_series(far, far_checks, dtype, widest)
    if expansion is None:
        return None
    theta, ratio = (values.reshape(len(inside), len(octaves)) for values in (near.ntk, near.f / near.distance))
    largest = np.maximum(np.max(np.abs(theta), axis=0), near.smallest)
    function = AngularFunction(
        variance=coincident.variance,
        mean=coincident.mean,
        law=coincident.law,
        near=np.stack([_coefficients(ratio), _coefficients(theta / largest)], axis=1),
        first_exponent=FIRST_EXPONENT[dtype],
        log_near=np.log(largest) + near.log_scale,
        log_coincident=math.log(coincident.ntk[0]) + coincident.log_scale,
        **expansion._asdict(),
    )
    return function, (near_checks, far_checks)


class _FarSeries(NamedTuple):
    shift: float
    widest: float
    order: int
    powers: tuple[int, int]
    far: np.ndarray
    log_far: float


def _far_series(nodes: Values, checks: Values, dtype: str, widest: float) -> _FarSeries | None:
    """The shortest expansion that, computed in this dtype, comes within half of the tolerance; None if none does."""
    largest = max(np.max(np.abs(nodes.ntk)), nodes.smallest)
    floor, log_far = nodes.smallest / largest, math.log(largest) + nodes.log_scale
    checks = checks.folded(widest)
    ntk = checks.ntk * math.exp(checks.log_scale - log_far)
    by_shift = [values.reshape(len(SHIFTS), -1) for values in (nodes.distance, nodes.f, nodes.ntk / largest)]
    expansions = [
        (shift, order, _expansion(f / d**order, shift, widest, 0.0), _expansion(theta, shift, widest, floor))
        for shift, d, f, theta in zip(SHIFTS, *by_shift, strict=True)
        for order in (0, 1)
    ]
    for degree in DEGREES:
        for shift, order, *pair in expansions:
            y = (1 / (np.arccos(1 - checks.distance) + shift)).astype(dtype)
            x = affine(y, shift, widest)
            found = [y ** y.dtype.type(power) * chebval(x, row[: degree + 1].astype(dtype)) for power, row in pair]
            error = max(
                relative_error(checks.distance**order * found[0], checks.f, checks.distance),
                relative_error(found[1], ntk, checks.distance, floor),
            )
            if error < TOLERANCE[dtype] / 2:
                far = np.stack([row[: degree + 1] for _, row in pair])
                return _FarSeries(shift, widest, order, (pair[0][0], pair[1][0]), far, log_far)
    return None


def _expansion(values: np.ndarray, shift: float, widest: float, floor: float) -> tuple[int, np.ndarray]:
    """A power of y that takes up the change of the values towards small angles, and coefficients of the rest."""
    t = _angles(shift, widest)
    wide, narrow = max(np.max(np.abs(values[t > 1])), floor), max(abs(values[np.argmin(t)]), floor)
    growth = math.log(narrow / wide) if min(wide, narrow) > 0 else 0.0
    power = round(np.clip(growth / math.log((1 + shift) / (NEAR_ANGLE + shift)), -LARGEST_POWER, LARGEST_POWER))
    return power, _coefficients(values * (t + shift) ** float(power))


def measured_error(function: AngularFunction, checks: tuple[Values, Values], dtype: str) -> float:
    """Largest error of f and theta, evaluated in this dtype, at the distances of the checks, below NEAR and beyond.

    NumPy evaluates them here. XLA's results differ from these by roundings: the errors of 38 functions came out larger
    by up to 1 eps, for which ROUNDING is added.
    """
    # theta is in units of the largest in its octave, so that no value leaves the dtype's range
    plain = replace(function, log_near=np.zeros_like(function.log_near))
    octaves = np.tile(function.log_near[:-1], 4)
    errors = []
    for part, values, in_units_of, log in (
        (plain.below_near, checks[0], 0.0, octaves),
        (function.from_near_on, checks[1].folded(function.widest), function.log_far, function.log_far),
    ):
        with np.errstate(over="ignore"):  # units of octaves that are in none of these values
            found = part(values.distance.astype(dtype), np.asarray(in_units_of, dtype))
        f, ntk = (x.astype(np.float64) for x in found)
        unit = np.exp(values.log_scale - log)
        errors.append(relative_error(f, values.f, values.distance))
        errors.append(relative_error(ntk, values.ntk * unit, values.distance, values.smallest * unit))
    return max(errors) + ROUNDING * float(np.finfo(dtype).eps)


def relative_error(
    found: np.ndarray, exact: np.ndarray, distance: np.ndarray, floor: float | np.ndarray = 0.0
) -> float:
    """Largest error relative to the value or to the floor; at angles beyond 1, to the largest value there."""
    wide = distance > 1 - math.cos(1)
    size = np.where(wide, np.max(np.abs(exact), where=wide, initial=0), np.abs(exact))
    size, error = np.maximum(size, floor), np.abs(found - exact)
    return float(np.max(np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)))


class _End(NamedTuple):
    """Kernel behind the layers, in units of the inputs' variance: distance and ntk_scaled (1, n), the rest scalars."""

    variance: jax.Array
    mean: jax.Array
    distance: jax.Array
    ntk_scaled: jax.Array
    log_scale: jax.Array
    units: Units


@lru_cache(maxsize=8)
def recursion_of(
    network: HasKernel, norm: float, count: int, *, compiled: bool = True
) -> Callable[[np.ndarray], Values] | None:
    """The recursion of up to `count` pairs of inputs of variance `norm`, by their cosine distances (n,).

    Results are in units of `norm`: variances and NTK are divided by it, means by its root. NumPy takes the layers, if
    it has all of their steps: 50 layers of ReLU in a fiftieth of a second, and compiling them takes more than one. If
    it has not, they are `compiled`, or None is returned.
    """

    def behind(distance: jax.Array) -> _End:
        variances, zeros = jnp.full_like(distance, norm), jnp.zeros_like(distance)
        pairs = Kernel(
            variance1=variances[:1],
            variance2=variances,
            distance=distance[None],
            mean1=zeros[:1],
            mean2=zeros,
            ntk_scaled=zeros[None],
            log_scale=zeros[0],
            relative_error=zeros[0],
            law="inputs",
        )
        end = network.kernel(pairs)
        variance, mean, ntk_scaled = end.variance1[0] / norm, end.mean1[0] / math.sqrt(norm), end.ntk_scaled[0] / norm
        return _End(variance, mean, end.distance[0], ntk_scaled, end.log_scale, Units(end.law))

    computed = in_numpy(behind, np.zeros(count), most=LONGEST_IN_NUMPY // count)
    if computed is None and not compiled:
        return None
    computed = computed or jax.jit(behind)

    def recursion(distance: np.ndarray) -> Values:
        end: Any = jax.tree.map(np.asarray, computed(np.pad(distance, (0, count - len(distance)), mode="edge")))
        variance, mean, log_scale = float(end.variance), float(end.mean), float(end.log_scale)
        f, ntk = end.distance[: len(distance)], end.ntk_scaled[: len(distance)]
        return Values(distance, f, ntk, log_scale, variance * math.exp(-log_scale), variance, mean, end.units.law)

    return recursion


def _nodes(degree: int) -> np.ndarray:
    """Chebyshev nodes on [-1, 1]."""
    return np.cos(math.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))


def _coefficients(values: np.ndarray) -> np.ndarray:
    """Chebyshev coefficients, along the first axis, of the polynomial with these values at the nodes."""
    count = len(values)
    k = np.arange(count)
    matrix = np.cos(math.pi * np.outer(k, k + 0.5) / count) * (2 / count)
    matrix[0] /= 2
    return matrix @ values


def _angles(shift: float, widest: float) -> np.ndarray:
    """Angles at the nodes in y = 1 / (t + shift)."""
    low, high = 1 / (widest + shift), 1 / (NEAR_ANGLE + shift)
    y = (low + high) / 2 + (high - low) / 2 * _nodes(DEGREES[-1])
    return np.clip(1 / y - shift, NEAR_ANGLE, widest)


def _cosine_distance(angles: np.ndarray) -> np.ndarray:
    return 2 * np.sin(angles / 2) ** 2
