"""Duals of functions without closed forms, in high precision: what the tests of the quadrature compare with.

`uv run --with gmpy2 python benchmarks/drawn_duals.py` writes tests/drawn_duals.json: of each function and of its slope
sqrt(E[f(u)^2] E[f(v)^2]) and the cosine distance 1 - corr(f(u), f(v)), for cases drawn by `tests/exact_duals.py`.

u is integrated on the outer and v given u on the inner of two Gauss-Legendre rules, in 120 bits (36 digits), between
edges that grade towards kinks, towards the unit scale of the functions and towards where v meets them. The same in 130
bits, by rules of more nodes and panels over a longer range, is what is written; the largest relative difference of the
two is written too, and has to be below `AGREED`.
"""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import gmpy2
import mpmath
import numpy as np
from gmpy2 import exp, expm1, log1p, mpfr

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.exact_duals import drawn  # noqa: E402

CASES = 45  # the first of the 100 that functions with closed forms are judged at
AGREED = 1e-15  # relative, of the coarser rule; the finer one is closer
SCALE = np.array([0.5, 1, 2, 4, 8, 16, 32, 64])  # of the functions: a pole is never nearer than a panel is wide
LAYERS = np.array([0.8, 1.6, 3, 5, 8])  # around what v's kinks are for u, in deviations of v given u


class Rule(NamedTuple):
    """The fineness of the integrals: bits of the numbers, nodes of a panel, range and panels of the density."""

    bits: int
    nodes: int
    reach: float
    panels: int


RULE, FINER = Rule(120, 14, 11.0, 10), Rule(130, 16, 11.5, 11)


def _tanh(x: mpfr) -> tuple[mpfr, mpfr]:
    e = exp(-2 * abs(x))
    value = (1 - e) / (1 + e)
    return (value if x > 0 else -value), 4 * e / (1 + e) ** 2


def _elu(x: mpfr) -> tuple[mpfr, mpfr]:
    return (x, mpfr(1)) if x > 0 else (expm1(x), exp(x))


def _silu(x: mpfr) -> tuple[mpfr, mpfr]:
    e = exp(-x)
    sigmoid = 1 / (1 + e)
    return x * sigmoid, sigmoid * (1 + x * e * sigmoid)


def _softplus(x: mpfr) -> tuple[mpfr, mpfr]:
    e = exp(x)
    return log1p(e), e / (1 + e)


def _relu6(x: mpfr) -> tuple[mpfr, mpfr]:
    return min(max(x, mpfr(0)), mpfr(6)), mpfr(int(0 < x < 6))


FUNCTIONS: dict[str, tuple[Callable[[mpfr], tuple[mpfr, mpfr]], tuple[float, ...]]] = {
    "tanh": (_tanh, (0.0,)),
    "elu": (_elu, (0.0,)),
    "silu": (_silu, (0.0,)),
    "softplus": (_softplus, (0.0,)),
    "relu6": (_relu6, (0.0, 6.0)),
}
"""Function and slope, and their kinks or, for smooth ones, their center."""


@functools.cache
def legendre(rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1], by Newton's method from those of float64."""
    with mpmath.workprec(rule.bits + 20):
        nodes, weights = [], []
        for start in np.polynomial.legendre.leggauss(rule.nodes)[0]:
            x = mpmath.findroot(lambda x: mpmath.legendre(rule.nodes, x), mpmath.mpf(float(start)))
            slope = rule.nodes * (x * mpmath.legendre(rule.nodes, x) - mpmath.legendre(rule.nodes - 1, x)) / (x * x - 1)
            nodes.append(mpfr(mpmath.nstr(x, 50)))
            weights.append(mpfr(mpmath.nstr(2 / ((1 - x * x) * slope**2), 50)))
    return np.array(nodes), np.array(weights)


def _numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The numbers in the precision at hand: an edge that is off by a rounding of float64 misses the jump."""
    return np.array([mpfr(float(value)) for value in values])


class Expectation:
    """Averages of one function and its slope, in the precision of one rule."""

    def __init__(self, name: str, rule: Rule) -> None:
        gmpy2.get_context().precision = rule.bits
        function, kinks = FUNCTIONS[name]
        self.kinks = _numbers(kinks)
        self.both = np.frompyfunc(function, 1, 2)
        self.reach, self.nodes = rule.reach, legendre(rule)
        self.density_edges = _numbers(np.linspace(-rule.reach, rule.reach, rule.panels + 1))
        # relu6 has nothing but its kinks
        self.edges = _numbers(self.kinks if name == "relu6" else np.concatenate([-SCALE[::-1], [0.0], SCALE]))

    def rule(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nodes, and weights times the normal density, between these edges and those of the density."""
        edges = np.concatenate([edges[abs(edges) < self.reach], self.density_edges])
        edges = np.array(sorted(set(edges)))
        points, weights = self.nodes
        half = (edges[1:] - edges[:-1]) / 2
        z = (((edges[1:] + edges[:-1]) / 2)[:, None] + half[:, None] * points).reshape(-1)
        density = np.frompyfunc(lambda z: exp(-z * z / 2), 1, 1)(z) / gmpy2.sqrt(2 * gmpy2.const_pi())
        return z, (half[:, None] * weights).reshape(-1) * density

    def squares(self, variance: float) -> list[mpfr]:
        """E[f(u)^2] of the function and of its slope."""
        root = gmpy2.sqrt(mpfr(variance))
        z, weight = self.rule(self.edges / root)
        return [weight @ values**2 for values in self.both(root * z)]

    def pair(self, p: float, q: float, d: float) -> list[tuple[mpfr, mpfr]]:
        """Scale sqrt(E[f(u)^2] E[f(v)^2]) and distance E[(f(u)/|f(u)| - f(v)/|f(v)|)^2] / 2, of f and of its slope."""
        norms = [[gmpy2.sqrt(square) for square in self.squares(variance)] for variance in (p, q)]
        root1, root2, rho = gmpy2.sqrt(mpfr(p)), gmpy2.sqrt(mpfr(q)), 1 - mpfr(d)
        spread = gmpy2.sqrt(mpfr(d) * (2 - mpfr(d)))
        layers = _numbers(np.concatenate([-LAYERS[::-1], [0.0], LAYERS]))
        slant = rho if abs(rho) > 1e-3 else mpfr(1)  # nearly independent pairs bend nowhere
        bends = (self.kinks[:, None] / root2 + layers * spread) / slant
        z, weight = self.rule(np.concatenate([self.edges / root1, self.edges / (root2 * slant), bends.reshape(-1)]))
        first = [values / norm for values, norm in zip(self.both(root1 * z), norms[0], strict=True)]
        found = [mpfr(0), mpfr(0)]
        for i, (at, w) in enumerate(zip(z, weight, strict=True)):
            y, inner = self.rule((self.edges / root2 - rho * at) / spread)
            for j, values in enumerate(self.both(root2 * (rho * at + spread * y))):
                found[j] += w * (inner @ (first[j][i] - values / norms[1][j]) ** 2) / 2
        return [(a * b, distance) for a, b, distance in zip(*norms, found, strict=True)]


class Drawn(NamedTuple):
    """One case: [scale, distance] of the function and of its slope in 25 digits, and the difference of two rules."""

    numbers: list[list[str]]
    apart: float


def computed(job: tuple[str, list[float]]) -> Drawn:
    name, case = job
    coarse, fine = (Expectation(name, rule).pair(*case) for rule in (RULE, FINER))
    apart = [
        float(abs(a / b - 1)) for one, other in zip(coarse, fine, strict=True) for a, b in zip(one, other, strict=True)
    ]
    return Drawn([[f"{number:.25g}" for number in part] for part in fine], max(apart))


def main() -> None:
    cases = drawn(100).T[:CASES].tolist()
    table: dict[str, object] = {"cases": cases}
    with Pool() as pool:
        for name in FUNCTIONS:
            found = pool.map(computed, [(name, case) for case in cases], chunksize=1)
            apart = max(case.apart for case in found)
            print(f"{name}: two rules differ by {apart:.1g} at most", flush=True)
            if apart > AGREED:
                raise ArithmeticError(f"{name}: expected at most {AGREED:g}; use more nodes")
            table[name] = [case.numbers for case in found]
            (ROOT / "tests" / "drawn_duals.json").write_text(json.dumps(table) + "\n")


if __name__ == "__main__":
    main()
