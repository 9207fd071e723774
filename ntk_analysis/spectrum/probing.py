"""Trace and density of a symmetric matrix from runs of Lanczos' method that start from random signs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.estimates import Estimated, estimated
from ntk_analysis.spectrum.kept_products import Product
from ntk_analysis.spectrum.lanczos import Krylov, lanczos


def krylov_runs(
    product: Product, size: int, *, steps: int, probes: int, probe_steps: int, seed: int
) -> tuple[Krylov, ...]:
    """A run of `steps` steps and `probes` runs of `probe_steps`, each from signs of its own."""
    lengths = [steps, *[probe_steps] * probes]
    return tuple(lanczos(product, signs(size, seed, number), length) for number, length in enumerate(lengths))


def trace_of(runs: Sequence[Krylov]) -> Estimated:
    """The trace: on the span of the first run exactly, on the rest of the space estimated from the others.

    With A the matrix on the rest of the space, the variance of z^T A z is at most 2 |A|_F^2 = 2 E |A z|^2. This bound
    is the standard error's: a few draws that by chance all miss a large eigenvalue would agree among themselves.
    """
    first, *others = runs
    values, squares = zip(*(_on_the_rest(first, run) for run in others), strict=True)
    error = math.sqrt(2 * float(np.mean(squares)) / len(others))
    return Estimated(float(first.diagonal.sum() + np.mean(values)), error, len(others))


def fraction_below(runs: Sequence[Krylov], values: float | np.ndarray) -> Estimated:
    """The fraction of the eigenvalues that are at most so large, an estimate in the shape of `values`.

    Each run knows two numbers between which the fraction lies as its start weighs the eigenvalues. The interval reaches
    from the mean of the lower ones to that of the upper ones (`bias` on either side), and by the error of both.
    """
    pairs = np.array([_between(run, np.asarray(values, np.float64)) for run in runs])
    low, high = (estimated(pairs[:, side]) for side in (0, 1))
    error = np.maximum(low.standard_error, high.standard_error)
    return Estimated((low.value + high.value) / 2, error, len(pairs), (high.value - low.value) / 2)


def signs(size: int, seed: int, number: int) -> Float64[np.ndarray, " m"]:
    """A random vector of entries 1 and -1, the same in every process; each number is another one."""
    bits = np.random.Philox(key=(seed, number)).random_raw(size) >> np.uint64(63)
    return np.where(bits == 1, 1.0, -1.0)


def _on_the_rest(first: Krylov, run: Krylov) -> tuple[float, float]:
    """z^T A z and |A z|^2 for the run's start z and A = P K P, P the projection off the first run's span.

    No product is needed: K z is the first step of the run, and K Q is known of the span's basis Q.
    """
    size = math.sqrt(len(run.basis))
    beside = run.basis[:, 1] * run.off_diagonal[0] if len(run.diagonal) > 1 else run.residual * run.last
    z, image = size * run.basis[:, 0], size * (run.diagonal[0] * run.basis[:, 0] + beside)
    q = first.basis
    c = q.T @ z
    image = image - first.residual * c[-1] * first.last  # K (z - Q c), up to what lies in the span
    rest = image - q @ (q.T @ image)
    return float((z - q @ c) @ rest), float(rest @ rest)


def _between(run: Krylov, values: np.ndarray) -> tuple[Any, Any]:
    """The numbers between which the fraction of eigenvalues up to each value lies, as the run's start weighs them."""
    nodes, vectors = run.ritz()
    sums = np.concatenate([[0.0], np.cumsum(vectors[0, ::-1] ** 2)])
    below = np.searchsorted(nodes[::-1], values, side="right")
    if run.residual == 0:  # the nodes are eigenvalues, and there are no others in the start
        return sums[below], sums[below]
    return sums[np.maximum(below - 1, 0)], np.minimum(sums[np.minimum(below + 1, len(nodes))], 1.0)
