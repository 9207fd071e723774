"""What the backward pass of a function keeps: the leaves of `jax.vjp`'s second result, who reads them, what repeats.

Only shapes are traced. The traced forward pass tells which leaves are arguments and which hold the same values, the
traced backward pass which operation reads each of them, and under which `jax.named_scope` that operation stands.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from ntk_analysis.training.scopes import POOLING, RELU

CONSTANTS = "constants"
COPIES = "copies"
OTHER = "other"
READERS = {"select_n": RELU, "select_and_scatter_add": POOLING}
"""Kind of kept arrays, by the operation of the backward pass that reads them, if they are in no scope."""
RESHAPING = ("copy", "copy_p", "reshape", "squeeze")  # operations that give the same bytes as they take


def kept_bytes(loss: Callable[..., tuple[jax.Array, Any]], *arguments: Any, kinds: Iterable[str] = ()) -> Counter[str]:
    """Bytes that `jax.vjp` of a loss in its first argument keeps besides the arguments, by kind.

    This is what JAX hands from forward to backward pass, a bound before compilation: XLA may compute an array again,
    never store a constant, or keep it in another form. Arrays that are one object count once. The sum over all kinds is
    the bound; without `CONSTANTS` and `COPIES` it is the bytes of distinct values. The kinds are:

    - `CONSTANTS`: arrays that depend on no argument, such as the zeros that JAX's own ReLU keeps and never reads.
    - `COPIES`: arrays that equal another kept array or an argument, found as the same operations on the same operands
      or as a reshaping. Equal values that come about in different ways are not found.
    - The first of `kinds` whose `scope` reads the array, else the kind of a reading operation in `READERS`, else
      `OTHER`.

    Args:
        loss: function that gives a scalar and auxiliary output, such as a model's new state.
        arguments: arguments of the loss, trees of arrays or of `jax.ShapeDtypeStruct`s.
        kinds: names of scopes; an array that several of them read counts for the first.
    """

    def passes(first: Any, *others: Any) -> tuple[Any, jax.Array]:
        value, pull, _ = jax.vjp(lambda first: loss(first, *others), first, has_aux=True)
        return pull, value

    forward, (pull, value) = jax.make_jaxpr(passes, return_shape=True)(*arguments)
    backward = jax.make_jaxpr(lambda pull, cotangent: pull(cotangent))(pull, value).jaxpr
    readers = _readers(backward)
    numbers, constants = _values(forward.jaxpr)
    seen = {numbers[var] for var in forward.jaxpr.invars}
    counted: set[Var] = set(forward.jaxpr.invars)
    found: Counter[str] = Counter()
    order = (*kinds, *READERS.values())
    # the residuals come first among the outputs of `passes` and among the arguments of the backward pass
    for leaf, read in zip(forward.jaxpr.outvars[:-1], backward.invars[:-1], strict=True):
        if isinstance(leaf, Var) and leaf in counted:
            continue
        if isinstance(leaf, Literal) or numbers[leaf] in constants:
            kind = CONSTANTS
        elif numbers[leaf] in seen:
            kind = COPIES
        else:
            kind = next((kind for kind in order if kind in readers.get(read, ())), OTHER)
        if isinstance(leaf, Var):
            counted.add(leaf)
            seen.add(numbers[leaf])
        found[kind] += math.prod(leaf.aval.shape) * leaf.aval.dtype.itemsize
    return found


def _readers(jaxpr: Jaxpr) -> dict[Var, set[str]]:
    """The kinds that read each variable, directly or behind reshapings."""
    kinds: dict[Var, set[str]] = {}
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name in RESHAPING:
            found = set().union(*(kinds.get(out, ()) for out in equation.outvars))
        else:
            found = {_kind(equation)}
        for var in equation.invars:
            if isinstance(var, Var):
                kinds.setdefault(var, set()).update(found)
    return kinds


def _kind(equation: JaxprEqn) -> str:
    scopes = str(equation.source_info.name_stack)
    if "<" in scopes:
        return scopes.rpartition("<")[2].partition(">")[0]
    return READERS.get(equation.primitive.name, OTHER)


def _values(jaxpr: Jaxpr) -> tuple[dict[Var, int], set[int]]:
    """A number for each variable, equal for equal values, and the set of numbers that are constants."""
    numbers: dict[Var, int] = {}
    known: dict[Any, int] = {}
    constants: set[int] = set()

    def number(key: Any) -> int:
        return known.setdefault(key, len(known))

    for var in (*jaxpr.invars, *jaxpr.constvars):
        numbers[var] = number(var)
    constants.update(numbers[var] for var in jaxpr.constvars)
    for equation in jaxpr.eqns:
        operands = [
            number((str(var.val), str(var.aval))) if isinstance(var, Literal) else numbers[var]
            for var in equation.invars
        ]
        constants.update(n for n, var in zip(operands, equation.invars, strict=True) if isinstance(var, Literal))
        if equation.primitive.name in RESHAPING:
            numbers[equation.outvars[0]] = operands[0]
            continue
        # operations with effects do not give the same value twice
        key = id(equation) if equation.effects else (equation.primitive.name, str(equation.params), *operands)
        for place, out in enumerate(equation.outvars):
            numbers[out] = number((key, place))
            if constants.issuperset(operands) and not equation.effects:
                constants.add(numbers[out])
    return numbers, constants
