"""Structured derivatives of neural-tangents on JAX's public functions.

neural-tangents linearises a function into a program of single linear operations and walks it backwards, one transposed
operation at a time, with JAX's internals of 2023. `linear_program` and `transpose` are these two steps with
`jax.linearize` and `jax.linear_transpose`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.interpreters.ad import UndefinedPrimal, Zero

# JAX leaves these two constructors without types
undefined: Callable[..., Any] = UndefinedPrimal
shape_of: Callable[..., Any] = jax.ShapeDtypeStruct


def strict_zip(*iterables: Iterable[Any]) -> list[tuple[Any, ...]]:
    """A list of tuples, as `zip` gives them; all iterables must have one length."""
    return list(zip(*iterables, strict=True))


def strict_map(function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
    """A list of the function's values; all iterables must have one length."""
    return [function(*arguments) for arguments in strict_zip(*iterables)]


def linear_program(backward_pass: Callable[..., Any]) -> Callable[..., tuple[Any, Callable[..., Any]]]:
    """neural-tangents' `_get_primals_out_and_pullback`, given its `_backward_pass` over the linearised program."""

    def primals_out_and_pullback(
        function: Callable[..., Any], mode: Any, j_rules: bool, s_rules: bool, forward: bool | None, *primals: Any
    ) -> tuple[Any, Callable[..., Any]]:
        with jax.disable_jit():  # the walk knows single operations, not calls of functions
            outputs, linear_map = jax.linearize(function, *primals)
            program = jax.make_jaxpr(linear_map)(*primals)
        unknown = [undefined(operand.aval) for operand in program.jaxpr.invars]

        def pullback(*cotangents: Any) -> Any:
            collected = backward_pass(
                program.jaxpr,
                mode=mode,
                consts=program.consts,
                primals_in=unknown,
                cotangents_in=tuple(jax.tree.leaves(cotangents)),
                _j_rules=j_rules,
                _s_rules=s_rules,
                _fwd=forward,
            )
            return jax.tree.unflatten(jax.tree.structure(primals), collected)

        return outputs, pullback

    return primals_out_and_pullback


def transpose(equation: Any, cotangent: Any, *operands: Any) -> tuple[Any, ...]:
    """Cotangents of one operation's operands: None for known operands, arrays for those in which it is linear."""
    if equation is None:  # neural-tangents' sign for the identity
        return (cotangent,)
    if isinstance(cotangent, Zero):
        return (None,) * len(operands)

    def operation(*values: jax.Array) -> Any:
        remaining = iter(values)
        filled = [next(remaining) if isinstance(x, UndefinedPrimal) else x for x in operands]
        found = equation.primitive.bind(*filled, **equation.params)
        if equation.primitive.multiple_results:
            (found,) = found  # the walk passes one cotangent
        return found

    shapes = [shape_of(x.aval.shape, x.aval.dtype) for x in operands if isinstance(x, UndefinedPrimal)]
    transposed: Iterator[Any] = iter(jax.linear_transpose(operation, *shapes)(cotangent))
    return tuple(next(transposed) if isinstance(x, UndefinedPrimal) else None for x in operands)
