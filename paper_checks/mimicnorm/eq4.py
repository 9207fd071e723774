"""Eq. 4: the dual activation of ReLU in closed form."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import quad

from ntk_analysis import activations
from ntk_analysis.layers import Dense

from ..contract import Claim, Evidence, Setting, Verdict
from ..draws import Average, average, pairs_of, samples
from ..tolerances import nearest, quadrature, rounding, sampling

RELU = activations.relu
EPS = float(np.finfo(np.float64).eps)

CLAIM = Claim(
    id="eq4",
    title="the dual activation of ReLU",
    statement="For unit Gaussians of correlation rho, E[relu(u) relu(v)] is the first arc-cosine kernel; its slope at "
    "correlation one is 1/2.",
    source="Eq. 4",
    scope="Two Gaussian pre-activations of unit variance, every correlation.",
    formula=r"\hat\phi(\rho) = \frac{\sqrt{1-\rho^2} + (\pi - \arccos\rho)\,\rho}{2\pi},\quad \hat\phi'(1) = \tfrac12",
    recorded=Verdict.HOLDS,
    summary="Holds from correlation -1 to 1 - 1e-12 and for unequal variances, against quadrature, automatic "
    "differentiation and layers of random weights.",
    figures=("fig4",),
)


class Theory(NamedTuple):
    """The dual activation as a function of two variances and the correlation, and its slope for unit variances."""

    dual: Callable[[Any, Any, Any], Any]
    slope: Callable[[Any], Any]


def _slope(rho: Any) -> Any:
    return RELU.derivative_dual(1.0, 1.0, rho)


def _other_angle(q1: Any, q2: Any, rho: Any) -> Any:
    return np.sqrt(q1 * q2) * (np.sqrt(1 - rho**2) + np.arccos(rho) * rho) / (2 * np.pi)


THEORY = Theory(RELU.dual, _slope)
WRONG = {
    "arccos(rho) in place of pi - arccos(rho)": Theory(_other_angle, _slope),
    "normalised to 1 at correlation one": Theory(lambda q1, q2, rho: 2 * RELU.dual(q1, q2, rho), _slope),
    "the arithmetic mean of unequal variances": Theory(
        lambda q1, q2, rho: (q1 + q2) / 2 * RELU.dual(1.0, 1.0, rho), _slope
    ),
    "slope 1 at correlation one": Theory(RELU.dual, lambda rho: 2 * _slope(rho)),
}

CORRELATIONS = np.linspace(-1, 1, 41)
SAMPLED = np.array([-0.9, -0.5, 0.0, 0.5, 0.9, 1.0])
VARIANCES = 2.0, 0.3
DISTANCES = np.array([1e-12, 1e-9, 1e-6, 1e-3])
CHANNELS = 64


class Expected(NamedTuple):
    """The numbers that a theory gives.

    Attributes:
        dual: values at CORRELATIONS, unit variances.
        sampled: values at SAMPLED, unit variances.
        unequal: values at SAMPLED, variances VARIANCES.
        slope: values at CORRELATIONS but the first, unit variances; the last one is at correlation one.
        sampled_slope: values at SAMPLED, unit variances.
    """

    dual: np.ndarray
    sampled: np.ndarray
    unequal: np.ndarray
    slope: np.ndarray
    sampled_slope: np.ndarray


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks by quadrature over the angle, automatic differentiation and finite layers, near correlation one too."""
    evidence, expected = Evidence(), of_theory(theory)
    by_quadrature(evidence, expected)
    by_differentiation(evidence, expected)
    rivals = [of_theory(wrong) for wrong in (THEORY, *WRONG.values())]
    by_layers(evidence, expected, rivals, setting.size(10_000, 1_000_000), setting.seed)
    evidence.edge("correlation", None, "no break between -1 and 1 - 1e-12")
    return evidence


def of_theory(theory: Theory) -> Expected:
    """Returns all numbers that are asked of a theory, in two calls: one program each."""
    rho = np.concatenate([CORRELATIONS, SAMPLED, SAMPLED])
    q1, q2 = (np.where(np.arange(len(rho)) < len(rho) - len(SAMPLED), 1.0, variance) for variance in VARIANCES)
    duals = np.split(np.asarray(theory.dual(q1, q2, rho)), [len(CORRELATIONS), len(rho) - len(SAMPLED)])
    slopes = np.asarray(theory.slope(np.concatenate([CORRELATIONS[1:], SAMPLED])))
    return Expected(*duals, *np.split(slopes, [len(CORRELATIONS) - 1]))


@functools.cache  # the same for all theories
def halved_drops() -> np.ndarray:
    """Returns E[(relu(u) - relu(v))^2] / 2 and the quadrature's error, at CORRELATIONS and DISTANCES: (45, 2).

    This is what the dual loses at an angle, uncancelled. A pair of unit Gaussians is a direction and a radius,
    E[radius^2] = 2: one integral over the direction.
    """

    def at(angle: float) -> tuple[float, float]:
        # where both are active the difference of two cosines, written as a product; where one is, a square
        both = quad(lambda a: np.sin(a - angle / 2) ** 2, angle - np.pi / 2, np.pi / 2, epsabs=0)
        single = quad(lambda a: np.sin(a) ** 2, 0, angle, epsabs=0)  # one cosine between its zero and the other's
        factor = 4 * np.sin(angle / 2) ** 2
        parts = factor * both[0] + 2 * single[0], factor * both[1] + 2 * single[1]
        return parts[0] / (2 * np.pi), parts[1] / (2 * np.pi)

    return np.array([at(angle) for angle in (*np.arccos(CORRELATIONS), *angles_near_one())])


def angles_near_one() -> np.ndarray:
    """Returns the angles whose cosines are DISTANCES from 1."""
    return np.asarray(2 * np.arcsin(np.sqrt(DISTANCES / 2)))


def by_quadrature(evidence: Evidence, expected: Expected) -> None:
    """Checks the dual against one integral, and what it loses near correlation one."""
    drops, near = np.split(halved_drops(), [len(CORRELATIONS)])
    because = "the quadrature's own error estimate and 8 roundings"
    evidence.stated(
        "phihat(rho), quadrature",
        expected=expected.dual,
        measured=0.5 - drops[:, 0],
        tolerance=quadrature(drops[:, 1] + 8 * EPS, because),
        condition="-1 <= rho <= 1",
    )
    lost = 0.5 * np.asarray(RELU.dual.cosine_distance(1.0, 1.0, DISTANCES))
    evidence.varied(
        "(phihat(1) - phihat(rho)) / (1 - rho)",
        expected=lost / DISTANCES,
        measured=near[:, 0] / DISTANCES,
        tolerance=quadrature(
            near[:, 1] / DISTANCES + 8 * EPS * (1 + 1 / angles_near_one()),
            "the quadrature's error estimate and 8 roundings of sin t - t cos t, eps / t each",
        ),
        condition="1 - rho from 1e-12 to 1e-3",
    )


@functools.cache
def derivatives() -> np.ndarray:
    """Differentiates phihat automatically; at -1, where two angles meet, the derivative is one-sided."""
    with jax.enable_x64(True):
        slopes = jax.jit(jax.vmap(jax.grad(lambda rho: RELU.dual(1.0, 1.0, rho))))
        return np.asarray(slopes(jnp.asarray(CORRELATIONS[1:], jnp.float64)))


def by_differentiation(evidence: Evidence, expected: Expected) -> None:
    """Checks phihat' against automatic differentiation."""
    measured = derivatives()
    because = "8 roundings, of an angle of the order of 1"
    evidence.stated(
        "phihat'(rho), autodiff",
        expected=expected.slope,
        measured=measured,
        tolerance=rounding(8 * EPS, because),
        condition="-0.95 <= rho <= 1",
    )
    evidence.stated(
        "phihat'(1)", expected=expected.slope[-1], measured=measured[-1], tolerance=rounding(8 * EPS, because)
    )


@functools.cache  # measured once for all theories
def finite_layers(draws: int, seed: int) -> Average:
    """Returns mean products over the channels of random layers: activations, slopes, and at unequal variances."""
    layer, unit = Dense(CHANNELS), pairs_of(SAMPLED.tolist())
    scale = np.sqrt(np.array([VARIANCES[0]] + [VARIANCES[1]] * len(SAMPLED)))[:, None]
    unequal = np.asarray(scale * unit, np.float32)

    def products(key: jax.Array) -> jax.Array:
        params = layer.init(key, unit.shape)[1]
        h, other = layer.apply(params, unit), layer.apply(params, unequal)
        y, z = RELU(h), RELU(other)
        active = (h > 0).astype(h.dtype)
        return jnp.stack([jnp.mean(a[:1] * a[1:], axis=1) for a in (y, active, z)])

    return average(samples(products, draws, jax.random.key(seed)))


def by_layers(evidence: Evidence, expected: Expected, rivals: list[Expected], draws: int, seed: int) -> None:
    """Checks the dual activation, and its slope as the probability that both units are active, by random layers."""
    found = finite_layers(draws, seed)
    because = f"5 standard errors of {draws} layers of {CHANNELS} channels"
    said, *others = ((one.sampled, one.sampled_slope, one.unequal) for one in (expected, *rivals))
    names = "E[relu(u) relu(v)], finite layers", "E[relu'(u) relu'(v)], finite layers", "E[relu(u) relu(v)]"
    conditions = "", "", f"variances {VARIANCES[0]} and {VARIANCES[1]}"
    for i, row in enumerate((evidence.stated, evidence.stated, evidence.corrected)):
        row(
            names[i],
            expected=said[i],
            rival=nearest(said[i], (other[i] for other in others)),
            measured=found.mean[i],
            tolerance=sampling(5 * found.error[i], because, draws),
            condition=conditions[i],
        )
