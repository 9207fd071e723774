"""Functions and their duals in many digits: what a quadrature that does not know them must reproduce.

Ten have closed forms. Of five others, without any, benchmarks/drawn_duals.py has computed the duals at drawn cases.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

mp = mpmath.mp


class Exact(NamedTuple):
    """A function, and E[f(u) f(v)] and E[f'(u) f'(v)] for variances p, q and d = 1 - rho, in mpmath."""

    function: Callable[[jax.Array], jax.Array]
    value: Callable[..., mpmath.mpf]
    slope: Callable[..., mpmath.mpf]


def _angle(d):
    return 2 * mp.asin(mp.sqrt(d / 2))


def _bent(linear, bent):
    def value(p, q, d):
        t = _angle(d)
        return mp.sqrt(p * q) * (linear**2 * (1 - d) + bent**2 * (2 / mp.pi) * (mp.sin(t) + (mp.pi / 2 - t) * (1 - d)))

    return value, lambda p, q, d: linear**2 + bent**2 * (1 - 2 * _angle(d) / mp.pi)


def _gelu():
    def parts(p, q, d):
        k = mp.sqrt(p * q) * (1 - d)
        determinant = 1 + p + q + p * q * d * (2 - d)
        return k, determinant, mp.mpf(1) / 4 + mp.asin(k / mp.sqrt((1 + p) * (1 + q))) / (2 * mp.pi)

    def value(p, q, d):
        k, determinant, orthant = parts(p, q, d)
        rest = p * q + k**2 * (1 - p * q) / ((1 + p) * (1 + q))
        return k * orthant + rest / (2 * mp.pi * mp.sqrt(determinant))

    def slope(p, q, d):
        k, determinant, orthant = parts(p, q, d)
        weight = 1 / (1 + p) + 1 / (1 + q) + 1 / determinant
        return orthant + k * weight / (2 * mp.pi * mp.sqrt(determinant))

    return value, slope


def _half_square(p, q, d):
    t, r = _angle(d), 1 - d
    return p * q * (3 * mp.sin(t) * r + (mp.pi - t) * (1 + 2 * r**2)) / (2 * mp.pi)


HALF = mp.mpf(1) / 2
EXACT = {
    "relu": Exact(lambda x: jnp.maximum(x, 0), *_bent(HALF, HALF)),
    "leaky": Exact(lambda x: jnp.where(x > 0, x, 0.25 * x), *_bent(mp.mpf(5) / 8, mp.mpf(3) / 8)),
    "abs": Exact(lambda x: jnp.maximum(x, -x), *_bent(mp.mpf(0), mp.mpf(1))),
    "erf": Exact(
        lambda x: jax.scipy.special.erf(x),
        lambda p, q, d: 2 / mp.pi * mp.asin(2 * mp.sqrt(p * q) * (1 - d) / mp.sqrt((1 + 2 * p) * (1 + 2 * q))),
        lambda p, q, d: 4 / mp.pi / mp.sqrt(1 + 2 * p + 2 * q + 4 * p * q * d * (2 - d)),
    ),
    "gelu": Exact(lambda x: x * jax.scipy.special.erfc(-x / 2**0.5) / 2, *_gelu()),
    "square": Exact(
        lambda x: x * x,
        lambda p, q, d: p * q * (1 + 2 * (1 - d) ** 2),
        lambda p, q, d: 4 * mp.sqrt(p * q) * (1 - d),
    ),
    "half square": Exact(
        lambda x: jnp.maximum(x, 0) ** 2,
        _half_square,
        lambda p, q, d: 4 * _bent(HALF, HALF)[0](p, q, d),
    ),
    "step": Exact(
        lambda x: jnp.where(x > 0, 1.0, 0.0).astype(x.dtype),
        lambda p, q, d: (mp.pi - _angle(d)) / (2 * mp.pi),
        lambda p, q, d: mp.mpf(0),
    ),
    "sign": Exact(jnp.sign, lambda p, q, d: 1 - 2 * _angle(d) / mp.pi, lambda p, q, d: mp.mpf(0)),
    "cosine": Exact(
        lambda x: jnp.cos(x),
        lambda p, q, d: mp.exp(-(p + q) / 2) * mp.cosh(mp.sqrt(p * q) * (1 - d)),
        lambda p, q, d: mp.exp(-(p + q) / 2) * mp.sinh(mp.sqrt(p * q) * (1 - d)),
    ),
}  # fmt: skip


COMPUTED = {
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "relu6": jax.nn.relu6,
}
CATALOGUE = [*EXACT, *COMPUTED]
TABLE = Path(__file__).with_name("drawn_duals.json")  # by benchmarks/drawn_duals.py


CASES = 100  # of each function with a closed form: variances and distances are drawn


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Variances from 1e-6 to 1e6 and cosine distances from 0 to 2, many of them next to the ends: (3, count)."""
    generator = np.random.default_rng(seed)
    p, q = 10 ** generator.uniform(-6, 6, (2, count))
    kind = generator.integers(0, 6, count)
    q = np.where(kind % 2 == 0, p * 10 ** generator.uniform(-1, 1, count), q)
    q = np.minimum(np.where(kind == 0, p, q), 1e6)
    near = 10 ** generator.uniform(-12, 0, count)
    distance = np.select([kind < 2, kind == 2], [near, 2 - near], generator.uniform(0, 2, count))
    return np.stack([p, q, distance])


class Judged(NamedTuple):
    """Largest ratio of true to stated error, the largest error stated, how many cases there were, how many refused."""

    ratio: float
    stated: float
    cases: int
    refused: int


def judged(name: str, count: int | None = None) -> Judged:
    """The library's quadrature of this function against its closed form at `count` drawn cases, or at computed ones.

    Each stated error is met by that of the distance, absolute, and of the value, relative to the deviations; moments of
    0 (of slopes, of a cosine at large variances) have no relative error.
    """
    from ntk_analysis.activations import Quadrature  # here: the formulas above need no library

    if name in EXACT:
        function, *formulas = EXACT[name]
        cases = drawn(count or CASES)
        true: list[Callable[..., Iterable[Any]]]
        true = [lambda i, f=formula: _by_formula(f, *cases[:, i]) for formula in formulas]
    else:
        function, table = COMPUTED[name], json.loads(TABLE.read_text())
        cases = np.array(table["cases"]).T[:, :count]
        true = [lambda i, side=side: map(mpmath.mpf, table[name][i][side]) for side in range(2)]
    found = Quadrature(function)
    known = np.flatnonzero(np.max(cases[:2], axis=0) <= found.largest_variance)
    ratios, stated = [0.0], 0.0
    for dual, exact in zip((found.dual, found.derivative_dual), true, strict=True):
        moments = dual.moment(*cases[:, known])
        for i, value, distance, distance_error, error in zip(known, *moments, strict=True):
            with mpmath.workdps(40):
                scale, apart = exact(i)
                if scale < 1e-250:
                    continue
                off = float(abs(value / scale - (1 - apart))), float(abs(distance - apart))
            ratios += [off[0] / error, off[1] / distance_error if distance_error > 0 else (np.inf if off[1] > 0 else 0)]
            stated = max(stated, error)
    return Judged(max(ratios), stated, cases.shape[1], cases.shape[1] - len(known))


def _by_formula(formula: Callable[..., mpmath.mpf], *case: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """sqrt(E[f(u)^2] E[f(v)^2]), and 1 - corr(f(u), f(v))."""
    p, q, d = map(mpmath.mpf, case)
    scale = mp.sqrt(formula(p, p, mp.mpf(0)) * formula(q, q, mp.mpf(0)))
    return scale, 1 - formula(p, q, d) / scale if scale > 0 else mp.mpf(0)
