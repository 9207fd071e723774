"""`diagnose`: every measurement on one network, put together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.diagnosis.checks import checked_function, chosen_inputs, precision_of
from ntk_analysis.diagnosis.correlations import layer_correlations
from ntk_analysis.diagnosis.field import field_of
from ntk_analysis.diagnosis.growth import SHUFFLES, measured_growth
from ntk_analysis.diagnosis.products import products_in_a_row
from ntk_analysis.diagnosis.report import Diagnosis
from ntk_analysis.diagnosis.shares import gradient_squares
from ntk_analysis.diagnosis.spectra import tangent
from ntk_analysis.diagnosis.verdict import THRESHOLD, verdict_of
from ntk_analysis.empirical.functions import Network
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

PERTURBED = 64  # number of inputs whose perturbations are followed, unless the batch is coupled


def diagnose(
    f: Network,
    params: Params,
    x: ArrayLike,
    *,
    count: int | None = None,
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    seed: int = 0,
    shuffles: int = SHUFFLES,
    track: Track = untracked,
    threshold: float = THRESHOLD,
) -> Diagnosis:
    """Conditioning, stable learning rate and phase of a network; the package's head has the theory and its limits.

    A network whose outputs, or whose derivatives by the inputs, are zero (dead or saturated) has no phase and is
    reported as "not decidable". A network whose tangent kernel is zero has nothing to report and is an error.

    NumPy float64 parameters and inputs are computed in float64, whatever JAX's flag.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats.
        params: tree of float arrays.
        x: float inputs (n, ...), at least 2.
        count: number of inputs to use, drawn with the seed; None is all up to 256.
        coupled: whether an output depends on the other inputs of its batch, as in batch normalisation in training mode:
            True, False or "detect", which tries it out, as for `empirical_ntk`.
        memory: memory that a tile of the kernel may take, as for `empirical_ntk`.
        seed: seed of the inputs drawn, of shuffles and of probes.
        shuffles: number of networks with the same weights in another order, at least 2: more of them make the error
            smaller.
        track: draws a progress bar of the kernel's tiles, and one of the shuffled networks.
        threshold: bound on |ln chi_1| per layer, below which a network counts as critical.

    Raises:
        TypeError: x or params are integers, or f returns no single array of floats.
        ValueError: parameters, inputs or outputs are NaN or infinite; the kernel is zero or underflows; inputs are too
            few or all zero; f raises an error (the message says which); an option is unknown.
        MemoryError: one pair of inputs needs more than `memory`.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"got threshold={threshold}, expected a positive number: |ln chi_1| per layer")
    if shuffles < 2:
        raise ValueError(f"got shuffles={shuffles}, expected at least 2: they tell how much one draw fluctuates")
    x = chosen_inputs(x, count, seed)
    with precision_of(params, x):
        flat = checked_function(f, params, x)
        kernel = tangent(f, params, x, memory=memory, coupled=coupled, track=track)
        few = x if kernel.plan.coupled else x[:PERTURBED]
        growth = measured_growth(flat, params, jnp.asarray(few), seed, shuffles=shuffles, track=track)
        squares = gradient_squares(flat, params, jnp.asarray(few), seed)
        products = products_in_a_row(flat, params, jnp.asarray(few))
        field, reason = field_of(f, len(x))
        layers = layer_correlations(f, params, few, field=field, seed=seed) if isinstance(f, Layer) else None
    return Diagnosis(
        inputs=len(x),
        outputs=kernel.plan.outputs,
        parameters=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params)),
        method=kernel.plan.method,
        coupling=kernel.coupling,
        trace=kernel.trace,
        full=kernel.full,
        ntk_ratio=kernel.ratio,
        by_layer=squares.shares("layer"),
        by_kind=squares.shares("kind"),
        products=products,
        growth=growth,
        layers=layers,
        field=field,
        field_reason=reason,
        verdict=verdict_of(growth, products, kernel.ratio, threshold=threshold),
    )
