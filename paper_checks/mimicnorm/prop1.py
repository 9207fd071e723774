"""Proposition 1: a straight ReLU network is never chaotic, and critical at one point only."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from ntk_analysis.layers import Activation, Dense, Serial
from ntk_analysis.meanfield import analyse, phase_diagram

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import Average, average, pairs_of, samples
from ..tolerances import nearest, quadrature, resolution, rounding, sampling

CLAIM = Claim(
    id="prop1",
    title="straight ReLU networks have chi_1 <= 1",
    statement="A straight ReLU network has chi_1 <= 1 for all variances of weights and biases, with equality only at "
    "w_var = 2, b_var = 0.",
    source="Proposition 1",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "no normalisation; every (sigma_w, sigma_b).",
    formula=r"\chi_1 \le 1,\quad \chi_1 = 1 \iff (\sigma_w, \sigma_b) = (\sqrt 2, 0)",
    recorded=Verdict.HOLDS,
    summary="True wherever the variance has a fixed point, which is where chi_1 = w_var/2 is defined. For w_var > 2 "
    "the variance grows without bound and perturbations grow too, by w_var/2 a layer. For tanh it is false: chi_1 "
    "exceeds 1 in its chaotic phase, whose variance is bounded.",
    figures=("phase_diagram",),
)


class Theory(NamedTuple):
    """The bound on chi_1, and the one (w_var, b_var) at which it is reached."""

    bound: float
    critical: tuple[float, float]


THEORY = Theory(1.0, (2.0, 0.0))
WRONG = {
    "a bound below 1": Theory(0.95, (2.0, 0.0)),
    "sigma_w = 2 in place of sqrt 2": Theory(1.0, (4.0, 0.0)),
    "critical with a bias": Theory(1.0, (2.0, 0.1)),
}

W_VARS = np.linspace(0, 4, 41)
B_VARS = np.array([0.0, 0.01, 0.1, 0.5, 1.0, 2.0])
ROUNDING = 8 * float(np.finfo(np.float64).eps)
CHANNELS = 32


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks a grid of the phase diagram, perturbations of finite layers, beyond w_var = 2, and other activations."""
    evidence = Evidence()
    grid(evidence, theory)
    finite_layers(evidence, theory, setting.size(10_000, 200_000), setting.seed)
    for name in ("abs", "tanh"):
        diagram = phase_diagram(name, w_var=W_VARS, b_var=B_VARS)
        evidence.varied(
            "largest chi_1 where the variance is bounded",
            expected=theory.bound,
            measured=diagram.chi_1[diagram.bounded].max(),
            tolerance=quadrature(
                1e-8, "at most the error that the library allows a critical chi_1: of quadrature, or rounding"
            ),
            condition=name,
            relation=Relation.AT_MOST,
        )
    edges(evidence)
    return evidence


def grid(evidence: Evidence, theory: Theory) -> None:
    """Checks chi_1 over the phase diagram, wherever the variance has a fixed point."""
    diagram = phase_diagram("relu", w_var=W_VARS, b_var=B_VARS)
    because = "8 roundings"
    condition = f"{int(diagram.bounded.sum())} bounded points, w_var 0 to 4, b_var 0 to 2"
    chi_1 = diagram.chi_1[diagram.bounded]
    evidence.stated(
        "chi_1",
        expected=theory.bound,
        measured=chi_1,
        tolerance=rounding(ROUNDING, because),
        condition=condition,
        relation=Relation.AT_MOST,
    )
    w, b = np.meshgrid(W_VARS, B_VARS)
    elsewhere = diagram.bounded & ~(np.isclose(w, theory.critical[0]) & np.isclose(b, theory.critical[1]))
    reached = np.abs(diagram.chi_1[elsewhere] - theory.bound) <= ROUNDING
    evidence.stated(
        "other points with chi_1 = 1",
        expected=0,
        measured=reached.sum(),
        tolerance=resolution(0.5, "a count"),
        condition=condition,
    )


def finite_layers(evidence: Evidence, theory: Theory, draws: int, seed: int) -> None:
    """Checks the growth of a small perturbation per layer, which is exact on average at every width."""
    w_star, b_star = theory.critical
    settings = (1.9, 0.5), (2.5, 0.0), theory.critical
    found = growth(settings, draws, seed)
    because = f"5 standard errors of {draws} layers of {CHANNELS} units"
    quantity = "growth of a perturbation, finite layers"
    expected = analyse("relu", w_var=1.9, b_var=0.5).chi_1
    evidence.stated(
        quantity,
        expected=expected,
        measured=found.mean[0],
        tolerance=sampling(5 * found.error[0], because, draws),
        rival=1.0,
        condition="w_var 1.9, b_var 0.5: chi_1",
    )
    at = f"w_var {w_star}, b_var {b_star}, where the bound is reached"
    evidence.stated(
        quantity,
        expected=theory.bound,
        measured=found.mean[2],
        tolerance=sampling(5 * found.error[2], because, draws),
        rival=nearest(theory.bound, (other.bound for other in (THEORY, *WRONG.values()))),
        condition=at,
    )
    bounded = float(analyse("relu", w_var=w_star, b_var=b_star).q_star is not None)
    evidence.stated(
        "whether the variance is bounded",
        expected=1,
        measured=bounded,
        tolerance=resolution(0.5, "yes (1) or no (0)"),
        condition=at,
    )
    unbounded = "w_var 2.5, b_var 0: the variance is not bounded"
    relation = Relation.AT_MOST
    evidence.varied(
        quantity,
        expected=theory.bound,
        measured=found.mean[1],
        tolerance=sampling(5 * found.error[1], because, draws),
        condition=unbounded,
        relation=relation,
    )


@functools.cache  # measured once for all theories
def growth(settings: tuple[tuple[float, float], ...], draws: int, seed: int) -> Average:
    """Returns the mean square of a unit perturbation behind ReLU and a dense layer, by forward mode."""
    networks = [Serial(Dense(CHANNELS), Activation("relu"), Dense(CHANNELS, w, b)) for w, b in settings]
    x, direction = pairs_of([0.0])[:, None]

    def grown(key: jax.Array) -> jax.Array:
        moved = []
        for network, own_key in zip(networks, jax.random.split(key, len(networks)), strict=True):
            params = network.init(own_key, x.shape)[1]
            where = jnp.asarray(x, params[0]["w"].dtype)
            _, tangent = jax.jvp(
                lambda x, n=network, p=params: n.apply(p, x), (where,), (direction.astype(where.dtype),)
            )
            moved.append(jnp.mean(tangent**2))
        return jnp.stack(moved)

    return average(samples(grown, draws, jax.random.key(seed)))


def edges(evidence: Evidence) -> None:
    """Finds by bisection the weight variances at which the claim's condition ends."""

    def bounded(w_var: float) -> float:
        return 1.0 if analyse("relu", w_var=w_var).q_star is not None else -1.0

    evidence.edge("w_var of relu", float(brentq(bounded, 1.0, 4.0, xtol=1e-9)), "beyond, the variance has no bound")

    def excess(w_var: float) -> float:
        return float(phase_diagram("tanh", w_var=w_var, b_var=0.1).chi_1[0, 0]) - 1

    evidence.edge("w_var of tanh", float(brentq(excess, 1.0, 3.0, xtol=1e-6)), "beyond, chi_1 > 1, at b_var = 0.1")
