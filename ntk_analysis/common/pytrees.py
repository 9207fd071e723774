"""Frozen dataclasses as JAX pytrees: their numbers are data, all the rest is structure.

A network is differentiated by its numbers, compiled once for all of their values, and mapped over them. A field is a
number if its annotation says so (`Number`, `float`, an array, a tuple of them), and structure if it is one of `int`,
`str` or `bool`. Of any other field the value decides: floats and arrays are numbers, another object of this kind hands
on its own. Everything else (names, functions) is structure, and so is a field with `metadata={"static": True}`.

Numbers that are known stay Python floats, which programs hold as constants: what needs them concretely (checks, fits,
caches) sees them. Only traced numbers are arguments of a program: `split` parts an object into the hashable rest and
its traced numbers, and `joined` puts them together again where they are arguments of a traced function.
"""

import abc
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, Union, cast, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

Tree: TypeAlias = Any
"""A pytree: arrays in nested containers, or in objects that JAX takes apart. Python has no type for it."""

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class _FloatsOnceMade(abc.ABCMeta):
    """The class of classes whose instances, once made, hold integers and known scalar arrays as Python floats."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        for name in (_fields(cast(Any, cls)) or ((),))[0]:
            value = getattr(made, name)
            if value is not (plain := _as_float(value, integers=True)):
                object.__setattr__(made, name, plain)
        return made


class NumbersAsData(metaclass=_FloatsOnceMade):
    """Base class of frozen dataclasses that are pytrees of their numbers, their subclasses included.

    `jax.tree.map` and its like skip the checks of `__post_init__`, for a gradient has the same type but another range.
    Known scalars become Python floats there too, so that the object stays hashable.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_with_keys(cls, _flat_with_keys, functools.partial(_unflat, cls), _flat)


@dataclass(frozen=True)
class _Hole:
    """The place of a traced number in the rest of an object."""

    index: int


def is_known(number: Tree) -> bool:
    """Whether a number has one value now: it is not traced, nor the place of one that is, nor an array of several."""
    return not isinstance(number, jax.core.Tracer | _Hole) and np.ndim(number) == 0


if TYPE_CHECKING:
    Number: TypeAlias = float
else:
    # a number in a layer: mostly a float; traced, or the place of a traced one; for a moment whatever the user gave
    Number: TypeAlias = float | int | np.number | np.ndarray | jax.Array | _Hole


def has_traced_numbers(tree: Tree) -> bool:
    """Whether a number of an object, or of a tree of objects, is traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def split(tree: T) -> tuple[T, tuple[jax.Array, ...]]:
    """An object with holes in the place of its traced numbers, which is hashable, and these numbers.

    Raises:
        ValueError: a number is an array of more than one.
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    if not arrays:
        return tree, ()
    if any(array.ndim for array in arrays):
        path, array = next((p, a) for p, a in jax.tree_util.tree_leaves_with_path(tree) if np.ndim(a))
        raise ValueError(
            f"the number {jax.tree_util.keystr(path)} has shape {array.shape}, expected one number: several are what "
            "jax.vmap maps over"
        )
    numbers: list[jax.Array] = []
    kept: list[Any] = []
    for leaf in leaves:
        traced = isinstance(leaf, jax.core.Tracer)
        kept.append(_Hole(len(numbers)) if traced else leaf)
        numbers += [leaf] if traced else []
    return jax.tree.unflatten(structure, kept), tuple(numbers)


def joined(rest: T, numbers: tuple[Any, ...]) -> T:
    """The object from the two parts that `split` made of it."""
    if not numbers:
        return rest
    return jax.tree.map(lambda leaf: numbers[leaf.index] if isinstance(leaf, _Hole) else leaf, rest)


def filled(rest: T) -> T:
    """The object with 1 in its holes, for what depends on structure and shapes only."""
    return jax.tree.map(lambda leaf: 1.0 if isinstance(leaf, _Hole) else leaf, rest)


def compiled_by_structure(function: Callable[P, R], static: tuple[str, ...]) -> Callable[P, R]:
    """jax.jit of a function whose keyword arguments `static` are static but for their traced numbers."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(rest: tuple[Any, ...], numbers: tuple[Any, ...], args: Any, kwargs: Any) -> R:
        whole = {name: joined(*parts) for name, *parts in zip(static, rest, numbers, strict=True)}
        return function(*args, **kwargs, **whole)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        others: dict[str, Any] = dict(kwargs)
        rest, numbers = zip(*(split(others.pop(name)) for name in static), strict=True)
        return cast(R, run(rest, numbers, args, others))

    return call


def _flat(tree: Any) -> tuple[tuple[Any, ...], Any]:
    names, rest, others = _fields(cast(Any, type(tree))) or ((), (), tuple(sorted(vars(tree))))
    for name in others:
        if _is_data(getattr(tree, name)):
            names += (name,)
        else:
            rest += (name,)
    kept = tuple([getattr(tree, name) for name in rest])
    return tuple([getattr(tree, name) for name in names]), (names, rest, kept)


def _flat_with_keys(tree: Any) -> tuple[Any, Any]:
    data, structure = _flat(tree)
    keys = map(jax.tree_util.GetAttrKey, structure[0])
    return tuple(zip(keys, data, strict=True)), structure


def _unflat(cls: type[T], structure: Any, data: Any) -> T:
    names, rest, kept = structure
    tree = object.__new__(cls)
    for name, value in zip(names + rest, (*map(_as_float, data), *kept), strict=True):
        object.__setattr__(tree, name, value)
    return tree


@functools.cache
def _fields(cls: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | None:
    """The names of a dataclass's fields: of numbers, of structure, and of what shows only by its value; else None."""
    if not is_dataclass(cls):
        return None
    kinds = {f.name: False if f.metadata.get("static") else _is_number(f.type) for f in fields(cls)}
    numbers, structure, others = (tuple(n for n, kind in kinds.items() if kind is k) for k in (True, False, None))
    return numbers, structure, others


def _is_number(annotation: Any) -> bool | None:
    """Whether a field of this type is a number; None if that depends on its value."""
    if isinstance(annotation, str):  # as under `from __future__ import annotations`
        return True if annotation == "float" else False if annotation in ("int", "bool", "str") else None
    if annotation == Number or annotation in (float, jax.Array, np.ndarray):
        return True
    if annotation in (int, bool, str, types.NoneType, Ellipsis):
        return False
    if get_origin(annotation) in (tuple, Union, types.UnionType):
        parts = {_is_number(part) for part in get_args(annotation) if part is not Ellipsis}
        return parts.pop() if len(parts) == 1 else None
    return None


def _is_data(value: Any) -> bool:
    """Whether a value is a number, an object that has numbers, or a tuple of them."""
    if isinstance(value, tuple):
        return any(map(_is_data, value))
    return isinstance(value, float | jax.Array | np.ndarray | _Hole | NumbersAsData)


def _as_float(value: Any, *, integers: bool = False) -> Any:
    """A known scalar array as a Python float, also in tuples, and an integer if `integers`; all else as it is."""
    if isinstance(value, float | bool | NumbersAsData | jax.core.Tracer):
        return float(value) if isinstance(value, np.floating) else value
    if isinstance(value, tuple):
        plain = tuple(_as_float(part, integers=integers) for part in value)
        return plain if any(new is not old for new, old in zip(plain, value, strict=True)) else value
    if integers and isinstance(value, int | np.integer):
        return float(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        kinds = (jnp.floating, jnp.integer) if integers else (jnp.floating,)
        known = value.ndim == 0 and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
        return float(value) if known else value
    return value
