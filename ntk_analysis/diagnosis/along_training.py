"""What training does to a network: its tangent kernel, sharpness, weights and activations, checkpoint by checkpoint.

Sharpness is the largest eigenvalue of the loss's Gauss-Newton matrix (see `spectrum.matrix_free`). Gradient descent at
rate eta on the quadratic model of the loss is stable below 2 / eta, with momentum beta below 2 (1 + beta) / eta; in
full-batch training sharpness rises to that edge of stability and stays there (Cohen et al. 2021, 2103.00065).

Where outputs do not depend on the length of an array w, as before a normalisation, only its direction is trained, at
the effective rate eta / |w|^2 (van Laarhoven 2017, 1706.05350). Which arrays those are is measured: the derivative
along w itself is a hundredth, or less, of that along a random direction.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from ntk_analysis.alignment import centered_alignment, kernel_distance, target_alignment
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.correlation import random_pairs
from ntk_analysis.correlation.pairs import cosine
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.empirical.by_group import group_names
from ntk_analysis.empirical.directions import random_direction
from ntk_analysis.empirical.functions import Network
from ntk_analysis.empirical.vector_products import VectorProducts, vector_products
from ntk_analysis.layers.base import Params
from ntk_analysis.spectrum.curvature import weighted
from ntk_analysis.spectrum.lanczos import lanczos
from ntk_analysis.spectrum.probing import signs

MATRICES = {"cross_entropy": "gauss_newton", "squared": "fisher"}
"""The matrix of `spectrum.matrix_free` whose largest eigenvalue is the sharpness, by the loss, a mean over inputs."""
STEPS = 20  # of Lanczos' method, of which few are wanted: the largest eigenvalue stands apart
INVARIANT = 0.01  # derivative along an array's own direction, as a fraction of that along a random one
PAIRS = 500  # number of pairs of inputs whose cosine is taken


class Checkpoint(NamedTuple):
    """Parameters at one time of training.

    Attributes:
        epoch: number of epochs done.
        params: tree of float arrays.
        rate: learning rate at that time.
    """

    epoch: float
    params: Params
    rate: float


@dataclass(frozen=True, eq=False)
class AlongTraining:
    """Measurements at each of E checkpoints; the first one is the start.

    Attributes:
        epochs: number of epochs done at each, (E,).
        rates: learning rates, (E,).
        distance: `alignment.kernel_distance` of the tangent kernel to that at the start, (E,).
        alignment: `alignment.centered_alignment` of the kernel with that at the start, (E,).
        target_alignment: centered alignment of the kernel with the labels, (E,); None without labels.
        sharpness: largest eigenvalue of the Gauss-Newton matrix, (E,).
        sharpness_error: bound on its error, (E,).
        momentum: momentum beta of the optimizer.
        invariant: paths of the arrays whose length the outputs do not depend on.
        effective_rates: rate / |w|^2, its geometric mean over these arrays, (E,); None if there are none.
        correlation: mean cosine of pairs of inputs, layer by layer of what `activations` gives, (E, layers); without
            that, of the outputs, (E, 1). NaN where all are zero.
    """

    epochs: Float64[np.ndarray, " E"]
    rates: Float64[np.ndarray, " E"]
    distance: Float64[np.ndarray, " E"]
    alignment: Float64[np.ndarray, " E"]
    target_alignment: Float64[np.ndarray, " E"] | None
    sharpness: Float64[np.ndarray, " E"]
    sharpness_error: Float64[np.ndarray, " E"]
    momentum: float
    invariant: tuple[str, ...]
    effective_rates: Float64[np.ndarray, " E"] | None
    correlation: Float64[np.ndarray, "E layers"]

    @property
    def edge(self) -> Float64[np.ndarray, " E"]:
        """Sharpness as a fraction of 2 (1 + momentum) / rate, (E,): 1 at the edge of stability."""
        return self.sharpness * self.rates / (2 * (1 + self.momentum))

    def record(self) -> dict[str, Any]:
        """All results as a dict that JSON can hold (NaN becomes null)."""
        named = {**vars(self), "edge": self.edge}
        return {name: _listed(value) if isinstance(value, np.ndarray) else value for name, value in named.items()}

    def summary(self) -> str:
        """The results as a table, a line for each checkpoint."""
        columns = {
            "epoch": [f"{epoch:g}" for epoch in self.epochs],
            "rate": [f"{rate:.3g}" for rate in self.rates],
            "kernel distance": [f"{value:.3f}" for value in self.distance],
            "alignment": [f"{value:.3f}" for value in self.alignment],
        }
        if self.target_alignment is not None:
            columns["with labels"] = [f"{value:.3f}" for value in self.target_alignment]
        columns["sharpness"] = [f"{value:.4g}" for value in self.sharpness]
        columns["of the edge"] = [f"{value:.3g}" for value in self.edge]
        if self.effective_rates is not None:
            columns["effective rate"] = [f"{value:.3g}" for value in self.effective_rates]
        columns["correlation"] = [f"{row[0]:.3f} to {row[-1]:.3f}" for row in self.correlation]
        widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
        rows = zip(*([name, *cells] for name, cells in columns.items()), strict=True)
        return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)

    __str__ = summary


def diagnose_along(
    f: Network,
    checkpoints: Iterable[Checkpoint],
    x: AnyArray,
    *,
    loss: str = "cross_entropy",
    momentum: float = 0.0,
    labels: AnyArray | None = None,
    activations: Callable[[Params, Any], Sequence[ArrayLike]] | None = None,
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    seed: int = 0,
) -> AlongTraining:
    """Measures a network at several times of its training, on the same inputs.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats; in training mode, if sharpness
            and scale invariance are to be those of training with batch norm.
        checkpoints: (epoch, parameters, learning rate) of each time; the first one is the start.
        x: inputs (n, ...), some tens of them.
        loss: the loss that is trained, "cross_entropy" or "squared" (1/2 |f - y|^2), a mean over inputs.
        momentum: momentum of stochastic gradient descent.
        labels: class labels (n,) of the inputs, for the alignment of the kernel with them; None: there is none.
        activations: function of (params, x) that gives the hidden layers' values, each (n, ...); None: the outputs'
            correlation is taken.
        coupled: whether an output depends on the other inputs of its batch, as for `empirical_ntk`.
        memory: memory that a tile or product may take, as for `empirical_ntk`.
        seed: seed of pairs and of random vectors.

    Raises:
        ValueError: there is no checkpoint, the loss is unknown, or a kernel is zero; as `empirical_ntk`.
        TypeError, MemoryError: as `empirical_ntk`.
    """
    if loss not in MATRICES:
        raise ValueError(f"got loss={loss!r}: choose one of {', '.join(MATRICES)}")
    x = concrete(x, "x")
    pairs = jnp.asarray(random_pairs(len(x), min(PAIRS, len(x) * (len(x) - 1) // 2), seed), jnp.int32)
    rows: list[dict[str, Any]] = []
    products: VectorProducts | None = None
    first, invariant = None, tuple[str, ...]()
    for checkpoint in checkpoints:
        if products is None:
            products = vector_products(f, checkpoint.params, x, coupled=coupled, memory=memory)
            invariant = scale_invariant(products, seed)
        else:
            products = replace(products, params=jax.tree.map(jnp.asarray, checkpoint.params))
        kernel = empirical_ntk(
            f, checkpoint.params, x, layout="trace", coupled=bool(products.coupling), memory=memory
        ).ntk
        first = kernel if first is None else first
        run = lanczos(weighted(products, MATRICES[loss]), signs(products.size, seed, 0), STEPS)
        found = [products.values()] if activations is None else activations(checkpoint.params, x)
        rows.append(
            {
                "epochs": checkpoint.epoch,
                "rates": checkpoint.rate,
                "distance": kernel_distance(first, kernel),
                "alignment": centered_alignment(first, kernel),
                "target_alignment": math.nan if labels is None else target_alignment(kernel, labels),
                "sharpness": run.ritz()[0][0],
                "sharpness_error": run.bounds[0],
                "effective_rates": effective_rate(products.params, invariant, checkpoint.rate),
                "correlation": [_mean_cosine(layer, pairs) for layer in found],
            }
        )
    if not rows:
        raise ValueError("got no checkpoint, expected at least one: (epoch, params, rate)")
    arrays: dict[str, Any] = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    if labels is None:
        arrays["target_alignment"] = None
    if not invariant:
        arrays["effective_rates"] = None
    return AlongTraining(**arrays, momentum=momentum, invariant=invariant)


def scale_invariant(products: VectorProducts, seed: int = 0) -> tuple[str, ...]:
    """Paths of the arrays of two axes or more whose length the outputs do not depend on, to first order."""
    leaves, tree = jax.tree.flatten(products.params)
    found = []
    for number, (name, leaf) in enumerate(zip(group_names(products.params, "array"), leaves, strict=True)):
        if leaf.ndim < 2:
            continue
        own = np.asarray(leaf)
        other = random_direction(own, seed + number)
        other = (other * (np.linalg.norm(own) / np.linalg.norm(other))).astype(own.dtype)
        along, across = (float(np.linalg.norm(products.forward(_only(leaves, tree, number, v)))) for v in (own, other))
        if along <= INVARIANT * across and across > 0:
            found.append(name)
    return tuple(found)


def effective_rate(params: Params, invariant: Sequence[str], rate: float) -> float:
    """Geometric mean of rate / |w|^2 over these arrays; NaN if there are none."""
    names, leaves = group_names(params, "array"), jax.tree.leaves(params)
    squares = [
        float(np.sum(np.asarray(leaf, np.float64) ** 2))
        for name, leaf in zip(names, leaves, strict=True)
        if name in invariant
    ]
    return rate / math.exp(float(np.mean(np.log(squares)))) if squares else math.nan


def _only(leaves: list[Any], tree: Any, number: int, value: np.ndarray) -> Any:
    """The tree of zeros but for one array."""
    parts = [value if index == number else np.zeros(leaf.shape, leaf.dtype) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, parts)


def _mean_cosine(layer: ArrayLike, pairs: jax.Array) -> float:
    """Mean cosine over the pairs of which neither input is zero; NaN if none is left."""
    rows = np.asarray(layer, np.float32)
    cosines = np.asarray(_cosine(jnp.asarray(rows.reshape(len(rows), -1)), pairs), np.float64)
    known = cosines[np.isfinite(cosines)]
    return float(known.mean()) if known.size else math.nan


_cosine = jax.jit(cosine)


def _listed(values: np.ndarray) -> Any:
    """Nested lists, with None for NaN."""
    return [_listed(row) if row.ndim else float(row) if np.isfinite(row) else None for row in values]
