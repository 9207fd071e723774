"""Largest eigenvalues, trace and density of a network's tangent kernel, by its products with vectors.

The kernel J J^T of N inputs with C outputs has m = N C rows; it is multiplied with vectors, and never formed. Three
matrices are multiplied in this way; the nonzero eigenvalues of the last two are those of matrices (P, P), which say how
the loss of N inputs, averaged, is curved by the P parameters (Martens 2020, 1412.1193):
    "ntk"           J J^T
    "fisher"        J J^T / N, of J^T J / N: the Fisher matrix of outputs with Gaussian noise of variance 1, which for
                    the loss 1/2 |f - y|^2 is the Gauss-Newton matrix, too
    "gauss_newton"  A^T J J^T A / N, of J^T H J / N: that of the cross-entropy, with H = diag(p) - p p^T of each input,
                    p = softmax(f), and A = diag(sqrt(p)) - p sqrt(p)^T, for which A A^T = H

Random vectors z of signs are started from. The first run of Lanczos' method is long, and gives the largest eigenvalues,
each with a bound, and the trace on its own span. The others are short. Each gives z^T K z for the trace on the rest of
the space (the deflation of Hutch++, Meyer et al. 2021, 2010.09649), and the nodes and weights of a Gauss quadrature for
the density of eigenvalues (Ubaru, Chen & Saad 2017). They say between which numbers the fraction of eigenvalues below t
lies, as z weighs them (Chebyshev, Markov & Stieltjes; Szego 1939, 3.41); the runs say how much it varies with z.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical.functions import Network, name_of
from ntk_analysis.empirical.vector_products import vector_products
from ntk_analysis.layers.base import Params
from ntk_analysis.spectrum.curvature import LOSSES, weighted
from ntk_analysis.spectrum.kept_products import Product, kept_count, kept_products
from ntk_analysis.spectrum.matrix_free_result import MatrixFreeSpectrum
from ntk_analysis.spectrum.probing import krylov_runs, trace_of
from ntk_analysis.stores.manifest import fingerprint

CHECKS = 2  # products with the largest eigenvector, which measure its residual and the effect of rounding


def matrix_free(
    f: Network,
    params: Params,
    x: AnyArray,
    *,
    matrix: str = "ntk",
    steps: int = 16,
    probes: int = 4,
    probe_steps: int = 5,
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    track: Track = untracked,
) -> MatrixFreeSpectrum:
    """Largest eigenvalues, trace and density of eigenvalues of a network of any size, without its kernel.

    `steps` + `probes` x `probe_steps` + 2 products with the kernel are taken. An eigenvalue that occurs several times
    is found once. Bounds hold for the kernel as the network's dtype rounds it; what rounding does is measured.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats.
        params: tree of float arrays.
        x: inputs (N, ...).
        matrix: name of the matrix, "ntk", "fisher" or "gauss_newton".
        steps: number of steps of the first run, >= 2: with more of them more eigenvalues are known.
        probes: number of short runs, >= 2, which estimate trace and density: standard errors fall like 1 /
            sqrt(probes).
        probe_steps: number of steps of each: with more of them the density is known at finer resolution.
        coupled: whether an output depends on the other inputs of its batch, as for `empirical_ntk`.
        memory: memory that a product may take: bytes, "4GiB", or None for half of what is free.
        seed: seed of the random vectors.
        folder: folder where products are kept; the same call goes on with those that are there. None: nothing is kept.
        tell: function that is called with a line on the time to expect, once a product has been timed.
        track: function that draws a progress bar of the products.

    Raises:
        TypeError, ValueError: an argument is refused, as by `empirical_ntk`; the kernel is zero; the folder has
            products of another matrix.
        MemoryError: the batch if it is coupled, or else one input, needs more than the memory.
        FileExistsError: the folder has something else.
        BlockingIOError: another process computes in the folder.
    """
    if matrix not in LOSSES:
        raise ValueError(f"got matrix={matrix!r}: choose one of {', '.join(LOSSES)}")
    for name, value in (("steps", steps), ("probes", probes)):
        if whole_number(value, name) < 2:
            raise ValueError(f"got {name}={value}, expected at least 2")
    whole_number(probe_steps, "probe_steps")
    products = vector_products(f, params, x, coupled=coupled, memory=memory)
    facts = {
        "params": fingerprint(params),
        "x": fingerprint(products.x),
        "f": name_of(f),
        "matrix": matrix,
        "dtype": str(products.dtype),
        "seed": seed,
    }
    total = steps + probes * probe_steps + CHECKS
    seconds = list[float]()
    with ExitStack() as stack:
        product = _timed(weighted(products, matrix), seconds, lambda: _told(seconds[-1], total, folder, tell))
        if folder is not None:
            rounding = math.sqrt(float(jnp.finfo(products.dtype).eps))
            product = stack.enter_context(kept_products(product, Path(folder), facts, rounding))
        bar = iter(track(range(total), "products"))
        product = _counted(product, bar)
        runs = krylov_runs(product, products.size, steps=steps, probes=probes, probe_steps=probe_steps, seed=seed)
        values, vectors = runs[0].ritz()
        if not values[0] > 0:
            raise ValueError(f"the {matrix} is zero: no parameter moves any output; the network is dead or saturated")
        top, bounds = runs[0].basis @ vectors[:, 0], runs[0].bounds
        found = product(top)
        moved = weighted(products.one_rounding_off(seed), matrix)(top)
        bounds[0] = max(bounds[0], float(np.linalg.norm(found - values[0] * top)))
        for _ in bar:  # runs that ended early leave steps over
            pass
    return MatrixFreeSpectrum(
        matrix=matrix,
        inputs=len(products.x),
        outputs=products.outputs,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(products.params)),
        dtype=products.dtype,
        coupling=products.coupling,
        rows=products.rows,
        memory_bytes=products.memory_bytes,
        products=sum(len(run.diagonal) for run in runs) + CHECKS,
        seconds=float(np.median(seconds)),
        eigenvalues=values,
        bounds=bounds,
        rounding=float(np.linalg.norm(moved - found)),
        trace=trace_of(runs),
        runs=runs,
    )


def _timed(product: Product, seconds: list[float], begun: Callable[[], None]) -> Product:
    """The product, which notes its seconds; `begun` is called behind the second, for the first one warms up."""

    def timed(v: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        found = product(v)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 2:
            begun()
        return found

    return timed


def _counted(product: Product, bar: Iterator[Any]) -> Product:
    """The product, each of which is a step of the progress bar."""

    def counted(v: np.ndarray) -> np.ndarray:
        next(bar, None)
        return product(v)

    return counted


def _told(seconds: float, total: int, folder: str | Path | None, tell: Callable[[str], None] | None) -> None:
    if tell is None:
        return
    kept = 0 if folder is None else kept_count(Path(folder))
    left = max(total - kept, 1)
    tell(f"a product takes {seconds:.3g} s: about {left * seconds / 60:.2g} min for {left} of {total} products")
