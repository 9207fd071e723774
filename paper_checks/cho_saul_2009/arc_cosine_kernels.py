"""Layers of steps, ReLU and squared ReLU have the arc-cosine kernels of order 0, 1 and 2."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import activations

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import quadrature

Theory: TypeAlias = Callable[[int, np.ndarray], np.ndarray]

CLAIM = Claim(
    id="arc_cosine_kernels",
    title="arc-cosine kernels",
    statement="E[relu(u)^n relu(v)^n] = J_n(theta) / (2 pi) for unit Gaussians at the angle theta, with J_0 = pi "
    "- theta, "
    "J_1 = sin theta + (pi - theta) cos theta, J_2 = 3 sin theta cos theta + (pi - theta)(1 + 2 cos^2 theta).",
    source="Eqs. 3 to 6",
    scope="One layer of infinite width, n = 0, 1, 2.",
    formula=r"k_n = \frac{1}{2 \pi} J_n(\theta)",
    recorded=Verdict.HOLDS,
    summary="True of the library's duals of the step, of ReLU, and of relu^2 by quadrature.",
)


def arc_cosine(order: int, angle: np.ndarray) -> np.ndarray:
    """Returns J_n of an angle."""
    rest = np.pi - angle
    return [
        rest,
        np.sin(angle) + rest * np.cos(angle),
        3 * np.sin(angle) * np.cos(angle) + rest * (1 + 2 * np.cos(angle) ** 2),
    ][order]


THEORY: Theory = arc_cosine
WRONG: dict[str, Theory] = {
    "theta for pi - theta": lambda order, angle: arc_cosine(order, np.pi - angle),
    "cos^2 counted once in J_2": lambda order, angle: (
        arc_cosine(order, angle) - (order == 2) * (np.pi - angle) * np.cos(angle) ** 2
    ),
}
ANGLES = np.array([0.1, 0.5, 1.0, np.pi / 2, 2.5, 3.0])


def squared(x: jax.Array) -> jax.Array:
    """Returns relu(x)^2."""
    return jnp.maximum(x, 0) ** 2


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the duals at several angles."""
    del setting  # one size
    evidence = Evidence()
    relu, square = activations.get("relu"), activations.get(squared)
    error = 10 * float(square.quadrature_error(1.0)) + 1e-11
    for order, (dual, tolerance) in enumerate(
        ((relu.derivative_dual, 1e-13), (relu.dual, 1e-13), (square.dual, error))
    ):
        evidence.stated(
            "E[relu^n relu^n]",
            expected=theory(order, ANGLES) / (2 * np.pi),
            measured=dual(np.ones(6), np.ones(6), np.cos(ANGLES)),
            tolerance=quadrature(tolerance, "rounding, and for n = 2 ten times the library's quadrature error"),
            condition=f"n = {order}",
        )
    return evidence
