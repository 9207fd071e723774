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
from paper_checks.contract import Claim, Evidence, Setting, Verdict
from paper_checks.draws import Average, average, pairs_of, samples

RELU = activations.relu
EPS = float(np.finfo(np.float64).eps)

CLAIM = Claim(
    id="eq4",
    title="the dual activation of ReLU",
    statement="For unit Gaussians of correlation rho, E[relu(u) relu(v)] is the first arc-cosine kernel; its slope at "
    "correlation one is 1/2.",
    source="Eq. 4",
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


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Quadrature over the angle, automatic differentiation, finite layers; correlations near one; two variances."""
    evidence = Evidence()
    by_quadrature(evidence, theory)
    by_differentiation(evidence, theory)
    by_layers(evidence, theory, setting.size(10_000, 1_000_000), setting.seed)
    evidence.edge("correlation", None, "no break between -1 and 1 - 1e-12")
    return evidence


def by_quadrature(evidence: Evidence, theory: Theory) -> None:
    """A pair of unit Gaussians is a direction and a radius, E[radius^2] = 2: one integral over the direction."""

    def halved_drop(angle: float) -> tuple[float, float]:
        """E[(relu(u) - relu(v))^2] / 2 and the quadrature's error: what the dual loses at this angle, uncancelled."""
        # where both are active the difference of two cosines, written as a product; where one is, a square
        both = quad(lambda a: np.sin(a - angle / 2) ** 2, angle - np.pi / 2, np.pi / 2, epsabs=0)
        single = quad(lambda a: np.sin(a) ** 2, 0, angle, epsabs=0)  # one cosine between its zero and the other's
        factor = 4 * np.sin(angle / 2) ** 2
        parts = factor * both[0] + 2 * single[0], factor * both[1] + 2 * single[1]
        return parts[0] / (2 * np.pi), parts[1] / (2 * np.pi)

    drops = np.array([halved_drop(angle) for angle in np.arccos(CORRELATIONS)])
    expected = np.asarray(theory.dual(1.0, 1.0, CORRELATIONS))
    because = "the quadrature's own error estimate and 8 roundings"
    evidence.stated(
        "phihat(rho), quadrature",
        expected,
        0.5 - drops[:, 0],
        drops[:, 1] + 8 * EPS,
        because,
        condition="-1 <= rho <= 1",
    )
    angles = 2 * np.arcsin(np.sqrt(DISTANCES / 2))
    near = np.array([halved_drop(angle) for angle in angles])
    lost = 0.5 * np.asarray(RELU.dual.cosine_distance(1.0, 1.0, DISTANCES))
    evidence.varied(
        "(phihat(1) - phihat(rho)) / (1 - rho)",
        lost / DISTANCES,
        near[:, 0] / DISTANCES,
        near[:, 1] / DISTANCES + 8 * EPS * (1 + 1 / angles),
        "the quadrature's error estimate and 8 roundings of sin t - t cos t, eps / t each",
        condition="1 - rho from 1e-12 to 1e-3",
    )


def by_differentiation(evidence: Evidence, theory: Theory) -> None:
    """phihat' by automatic differentiation of phihat, and as the probability that both units are active."""
    with jax.enable_x64(True):
        rho = jnp.asarray(CORRELATIONS[1:], jnp.float64)  # at -1, where two angles meet, a derivative is one-sided
        measured = np.asarray(jax.vmap(jax.grad(lambda r: RELU.dual(1.0, 1.0, r)))(rho))
    expected = np.asarray(theory.slope(CORRELATIONS[1:]))
    because = "8 roundings, of an angle of the order of 1"
    evidence.stated("phihat'(rho), autodiff", expected, measured, 8 * EPS, because, condition="-0.95 <= rho <= 1")
    evidence.stated("phihat'(1)", theory.slope(1.0), measured[-1], 8 * EPS, because)


@functools.cache  # measured once for all theories
def finite_layers(draws: int, seed: int) -> Average:
    """Mean products over the channels of random layers: activations, their slopes, and those of unequal variances."""
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


def by_layers(evidence: Evidence, theory: Theory, draws: int, seed: int) -> None:
    """The dual activation and its slope against random layers."""
    found = finite_layers(draws, seed)
    because = f"5 standard errors of {draws} layers of {CHANNELS} channels"
    expected = theory.dual(1.0, 1.0, SAMPLED), theory.slope(SAMPLED), theory.dual(*VARIANCES, SAMPLED)
    names = "E[relu(u) relu(v)], finite layers", "E[relu'(u) relu'(v)], finite layers", "E[relu(u) relu(v)]"
    conditions = "", "", f"variances {VARIANCES[0]} and {VARIANCES[1]}"
    for i, row in enumerate((evidence.stated, evidence.stated, evidence.varied)):
        row(names[i], expected[i], found.mean[i], 5 * found.error[i], because, condition=conditions[i])
