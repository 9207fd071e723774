"""Where a function's program switches between its branches: there are its kinks and jumps, however narrow.

A program chooses by max, min, abs, sign, clamp and comparisons, each of which compares two numbers. Their difference is
followed over x, and where it changes its sign is bisected. Between two points of a grid it may change its sign twice,
so the extremes of the differences, and the switches found, are points of the next, finer grid.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

GRID = 10.0 ** np.arange(-10, 5, 1 / 8)
ROUNDS = 4  # a switch inside a narrow one inside a narrow one
HALVINGS = 64
MOST = 64  # nearest to 0: of a square wave there is no end

DIFFERENCES: dict[str, Callable[..., list[jax.Array]]] = {
    **dict.fromkeys(("max", "min", "lt", "le", "gt", "ge", "eq", "ne"), lambda a, b: [a - b]),
    **dict.fromkeys(("abs", "sign"), lambda a: [a]),
    "clamp": lambda low, x, high: [x - low, high - x],
}
"""By primitive: differences of numbers, where a sign is another branch."""


def switches(function: Callable[[jax.Array], jax.Array], reach: float) -> np.ndarray:
    """The places |x| < reach, ascending, at which the program of an elementwise function switches; in float64 mode.

    Branches of `lax.cond`, loops and callbacks are not looked into.
    """
    program = jax.make_jaxpr(function)(np.zeros(()))
    if not jax.eval_shape(lambda x: _differences(program, x)[1], np.zeros(())):
        return np.zeros(0)

    @jax.jit
    @jax.vmap
    def compared(x: jax.Array) -> jax.Array:  # the differences and their slopes
        return jnp.concatenate(jax.jvp(lambda x: jnp.stack(_differences(program, x)[1]), (x,), (jnp.ones_like(x),)))

    grid = np.append(GRID[reach > GRID], reach)
    grid = np.concatenate([-grid[::-1], [0.0], grid])
    count, found = compared(grid[:1]).shape[1] // 2, np.zeros(0)
    for _ in range(ROUNDS):
        places, row = _sign_changes(compared, grid)
        found = np.unique(np.concatenate([found, places[row < count]]))
        finer = np.union1d(grid, places)
        if len(finer) == len(grid):
            break
        grid = finer
    return np.sort(found[np.argsort(np.abs(found), kind="stable")[:MOST]])


def _sign_changes(compared: Callable[[np.ndarray], jax.Array], grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places at which a row of compared(x) changes its sign or is 0, and the number of the row."""
    sign = np.sign(np.asarray(compared(grid))).T
    row, start = np.nonzero(sign[:, 1:] * sign[:, :-1] < 0)
    low, high, below = grid[start], grid[start + 1], sign[row, start]
    order = np.arange(len(row))
    for _ in range(HALVINGS if len(row) else 0):
        middle = (low + high) / 2
        same = np.sign(np.asarray(compared(middle)))[order, row] == below
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    if len(row):  # of two neighbours, the one where the numbers are nearer to each other
        sizes = [np.abs(np.asarray(compared(x)))[order, row] for x in (low, high)]
        low = np.where(sizes[0] <= sizes[1], low, high)
    at_zero = np.nonzero(sign == 0)
    few = at_zero[0][:MOST], at_zero[1][:MOST]  # a slope that is 0 everywhere says nothing
    return np.concatenate([low, grid[few[1]]]), np.concatenate([row, few[0]])


def _differences(program: Any, *arguments: Any) -> tuple[list[Any], list[jax.Array]]:
    """Results of a closed jaxpr, and the differences that decide between its branches."""
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(program.jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    found: list[jax.Array] = []
    for equation in program.jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        inner = _called(equation)
        if inner is not None:
            results, more = _differences(inner, *inputs)
            found += more
        else:
            name = equation.primitive.name
            if name in DIFFERENCES and all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in inputs):
                found += [jnp.asarray(x, float) for x in DIFFERENCES[name](*inputs)]
            result = equation.primitive.bind(*inputs, **equation.params)
            results = result if equation.primitive.multiple_results else [result]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in program.jaxpr.outvars], found


def _called(equation: Any) -> Any:
    """The closed jaxpr that an equation calls once, as a jitted function or one with its own derivative does."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next((equation.params[name] for name in names if name in equation.params), None)
    return core.ClosedJaxpr(inner, ()) if isinstance(inner, core.Jaxpr) else inner
