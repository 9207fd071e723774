"""Functions written for JAX that NumPy computes: what takes it milliseconds would take a second to compile.

The function is traced, and each step of its program is one of NumPy's. `STEPS` has those of homogeneous networks'
kernels and of closed forms; where a result needs another step there is no version for NumPy.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

STEPS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.bitwise_and,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "sqrt": np.sqrt,
    "sub": np.subtract,
}
"""Steps without settings, by the name of the primitive."""
SAME = ("stop_gradient", "copy", "copy_p")  # steps that change no value
RESHAPED = ("reshape", "squeeze", "expand_dims")


class _Step(NamedTuple):
    """One step: compute(*operands), numbers of values, gives the results, one or several; NumPy may have none."""

    compute: Callable[..., Any] | None
    operands: tuple[int, ...]
    results: tuple[int, ...]


def in_numpy(function: Callable[..., Any], *like: Any, most: int) -> Callable[..., Any] | None:
    """The function as NumPy computes it, or None if its program is too long, or needs a step that is not in `STEPS`.

    Its results are NumPy arrays, equal to JAX's up to rounding, and nothing is compiled.

    Args:
        function: function of arrays that returns a pytree of arrays.
        like: arrays, or their shapes and dtypes, of which it is a function then; float64 needs JAX's flag here.
        most: largest number of steps, each pass of a loop counted.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*like)
    leaves, tree = jax.tree.flatten(shape)
    try:
        program = _Program(closed)
    except NotImplementedError:
        return None
    if program.length > most:
        return None

    def computed(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):  # infinite and NaN are results, as they are in JAX
            found = program(*map(np.asarray, arguments))
        arrays = [np.asarray(value, leaf.dtype) for value, leaf in zip(found, leaves, strict=True)]
        return jax.tree.unflatten(tree, arrays)

    return computed


class _Program:
    """A closed jaxpr as steps of NumPy: those that a result needs, and that depend on an argument."""

    def __init__(self, closed: Any) -> None:
        self.values: list[Any] = [None] * len(closed.jaxpr.invars)  # arguments first; None: known in a call only
        steps: list[_Step] = []
        self.results = self._emit(closed.jaxpr, closed.consts, range(len(self.values)), steps)
        needed, self.steps = set(self.results), list[_Step]()
        for step in reversed(steps):
            if needed.intersection(step.results):
                if step.compute is None:
                    raise NotImplementedError("a step that a result needs is none of NumPy's")
                needed.update(step.operands)
                self.steps.insert(0, step)

    @property
    def length(self) -> int:
        """Number of steps, each pass of a loop counted."""
        return sum(step.compute.length if isinstance(step.compute, _Loop) else 1 for step in self.steps)

    def __call__(self, *arguments: Any) -> list[Any]:
        values = [*arguments, *self.values[len(arguments) :]]
        for compute, operands, results in self.steps:
            assert compute is not None, "checked when the steps were chosen"
            found = compute(*[values[index] for index in operands])
            if len(results) == 1:
                values[results[0]] = found
            else:
                for index, value in zip(results, found, strict=True):
                    values[index] = value
        return [values[index] for index in self.results]

    def _new(self, value: Any = None) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _emit(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[int], steps: list[_Step]) -> list[int]:
        """Adds the steps of a jaxpr whose arguments are these values; the numbers of its results."""
        numbers = dict(zip(jaxpr.invars, arguments, strict=True))
        numbers |= {
            variable: self._new(np.asarray(const)) for variable, const in zip(jaxpr.constvars, consts, strict=True)
        }

        def number(variable: Any) -> int:
            if isinstance(variable, core.Literal):
                aval: Any = variable.aval
                return self._new(np.asarray(variable.val, aval.dtype))
            return numbers[variable]

        for equation in jaxpr.eqns:
            operands = tuple(map(number, equation.invars))
            inner = _called(equation)
            if inner is not None:
                results: Sequence[int] = self._emit(inner.jaxpr, inner.consts, operands, steps)
            elif _changes_nothing(equation):
                results = operands
            else:
                results = self._step(equation, operands, steps)
            numbers |= dict(zip(equation.outvars, results, strict=True))
        return [number(variable) for variable in jaxpr.outvars]

    def _step(self, equation: Any, operands: tuple[int, ...], steps: list[_Step]) -> Sequence[int]:
        try:
            compute = _in_numpy(equation)
        except NotImplementedError:
            compute = None  # perhaps no result needs it
        inputs = [self.values[index] for index in operands]
        if compute is not None and len(equation.outvars) == 1 and all(value is not None for value in inputs):
            with np.errstate(all="ignore"):
                return (self._new(compute(*inputs)),)
        results = tuple(self._new() for _ in equation.outvars)
        steps.append(_Step(compute, operands, results))
        return results


def _called(equation: Any) -> Any:
    """The closed jaxpr that an equation calls once, as a jitted function or one with its own derivative does."""
    if equation.primitive.name == "scan":
        return None
    inner = next((equation.params[name] for name in ("jaxpr", "call_jaxpr") if name in equation.params), None)
    return core.ClosedJaxpr(inner, ()) if isinstance(inner, core.Jaxpr) else inner


def _changes_nothing(equation: Any) -> bool:
    if equation.primitive.name == "convert_element_type":
        return bool(equation.invars[0].aval.dtype == equation.params["new_dtype"])
    return equation.primitive.name in SAME


def _in_numpy(equation: Any) -> Callable[..., Any]:
    """The function of NumPy for an equation; raises NotImplementedError if there is none here."""
    name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
    if name in STEPS:
        return STEPS[name]
    if name in RESHAPED:
        return lambda x: np.reshape(x, shape)
    if name == "broadcast_in_dim":
        kept = params["broadcast_dimensions"]
        given = equation.invars[0].aval.shape
        narrow = tuple(given[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape)))
        return lambda x: np.broadcast_to(np.reshape(x, narrow), shape)
    if name == "convert_element_type":
        return lambda x: np.asarray(x).astype(params["new_dtype"])
    if name == "integer_pow":
        return lambda x: x ** params["y"]
    if name == "reduce_max":
        return lambda x: np.max(x, axis=params["axes"])
    if name == "select_n" and len(equation.invars) == 3:
        return lambda which, no, yes: np.where(which, yes, no)
    if name == "slice":
        strides = params["strides"] or (None,) * len(shape)
        part = tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
        return lambda x: x[part]
    if name == "scan" and len(equation.outvars) == params["num_carry"] and not params["reverse"]:
        return _Loop(params)
    raise NotImplementedError(name)


class _Loop:
    """A loop (`lax.scan`) that carries values on and keeps none of each pass."""

    def __init__(self, params: Any) -> None:
        self.body, self.passes = _Program(params["jaxpr"]), params["length"]
        self.fixed, self.carried = params["num_consts"], params["num_consts"] + params["num_carry"]

    @property
    def length(self) -> int:
        return int(self.passes * self.body.length)

    def __call__(self, *operands: Any) -> list[Any]:
        fixed, carry, each = operands[: self.fixed], operands[self.fixed : self.carried], operands[self.carried :]
        for index in range(self.passes):
            carry = tuple(self.body(*fixed, *carry, *(values[index] for values in each)))
        return list(carry)
