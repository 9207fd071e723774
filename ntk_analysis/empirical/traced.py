"""An empirical kernel as a part of a user's own program: traced in one piece, under jit, grad and vmap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import real_array
from ntk_analysis.common.cost import described
from ntk_analysis.empirical.coupling import known_coupling
from ntk_analysis.empirical.functions import Network, Side, check_inputs, check_params, count_outputs
from ntk_analysis.empirical.halves import symmetric_tile
from ntk_analysis.empirical.layouts import Layout, arranged
from ntk_analysis.empirical.plans import Task, TilePlan
from ntk_analysis.empirical.tiles import AS_STATED, check_choices, method_of
from ntk_analysis.empirical.whole_models import refuse_whole_models
from ntk_analysis.layers.base import Params


def traced_kernel(
    f: Network,
    params: Params,
    x1: Any,
    x2: Any,
    *,
    layout: Layout = "full",
    which: str = "ntk",
    method: str = "auto",
    coupled: bool | str = "detect",
    **elsewhere: Any,
) -> tuple[jax.Array, TilePlan]:
    """The kernel in one tile, and its plan, in which nothing is counted; arguments are those of `empirical_ntk`.

    Values are not looked at, so that what is not finite stays in the result.

    Raises:
        TypeError: an option is given that a part of another program cannot have; or whether the batch is coupled is not
            known, and trying it out takes values.
        TypeError, ValueError: an argument is refused, as by `empirical_ntk`.
    """
    given = [name for name, value in elsewhere.items() if value is not None]
    if given:
        raise TypeError(
            f"got {', '.join(given)} inside a JAX transformation, where the kernel is one tile of the caller's "
            "program: leave it out, or call empirical kernels outside jit"
        )
    refuse_whole_models(f, params)
    check_choices(f, layout=layout, which=which, method=method, coupled=coupled)
    x1 = jnp.asarray(real_array(x1, "x1"))
    x2 = None if x2 is None else jnp.asarray(real_array(x2, "x2"))
    shape1 = described(x1.shape, x1.dtype)
    check_inputs(shape1, None if x2 is None else described(x2.shape, x2.dtype))
    check_params(jax.tree.map(lambda leaf: described(jnp.shape(leaf), jnp.result_type(leaf)), params))
    params = jax.tree.map(jnp.asarray, params)
    outputs, dtype = count_outputs(f, params, shape1)
    if coupled == "detect":
        coupled = known_coupling(f)  # type: ignore[assignment]  # None if it is not known
    if coupled is None:
        raise TypeError(
            "coupled='detect' tries the function out, which takes values: inside jit, grad and vmap state "
            "coupled=False if outputs do not depend on the other inputs of their batch, else coupled=True"
        )
    if which == "nngp":
        method = "outputs"
    elif method == "auto":
        method = "jacobian"
    task = Task(outputs, layout, which, bool(coupled), AS_STATED if coupled else "", np.dtype(dtype), 0)
    plan = task.whole(len(x1), len(x1 if x2 is None else x2), method, symmetric=x2 is None)
    program = method_of(f, method, layout)

    def side(x: jax.Array) -> Side:
        return Side(x, jnp.arange(len(x)) if coupled else None)

    if x2 is None:
        return symmetric_tile(program, layout, params, side(x1)), plan
    left, right = program.prepare(params, side(x1)), program.prepare(params, side(x2))
    return arranged(program.contract(params, left, right), layout), plan
