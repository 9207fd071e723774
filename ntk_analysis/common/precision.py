"""Float64 for NumPy callers, whatever JAX's flag says.

Condition numbers, correlations near one and fixed points do not survive float32. So a public function that is given
NumPy float64 arrays (or nothing but Python numbers) computes in float64 and answers in NumPy float64, with JAX's x64
flag on or off. JAX arrays in, JAX arrays of the same dtype out (float32 for narrower ones). Inside a JAX transformation
nothing is switched: the ambient dtype is followed. What is taken as an array at all says `arrays`.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import real_array
from ntk_analysis.common.pytrees import Tree, has_traced_numbers

AnyArray: TypeAlias = jax.Array | np.ndarray
Real: TypeAlias = AnyArray | np.floating | float | int
"""A real number or an array of them, from Python, NumPy or JAX."""

if TYPE_CHECKING:
    HeldArray: TypeAlias = jax.Array
else:
    # an array in a result: JAX's inside the library, NumPy's once handed to a NumPy caller; both have the same methods
    HeldArray: TypeAlias = jax.Array | np.ndarray | np.floating

P = ParamSpec("P")
R = TypeVar("R")


def is_traced(*trees: Any) -> bool:
    """Whether a JAX transformation is under way: a leaf is a tracer, or a new array would be one (inside jit)."""
    leaves = [*jax.tree.leaves(trees), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def wants_float64(*trees: Any) -> bool:
    """Whether the caller gives NumPy float64 (or integers, or only Python numbers), and not JAX arrays or float32."""
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array | np.ndarray | np.generic)]
    if any(isinstance(leaf, jax.Array) for leaf in arrays):
        return False
    # NumPy does not know the common type of bfloat16 and its own types; what is not a number is refused later, by name
    known = [np.dtype(np.float16) if _narrow(leaf.dtype) else leaf.dtype for leaf in arrays]
    numeric = [dtype for dtype in known if dtype.kind in "biuf"]
    return not numeric or np.result_type(*numeric, 0.0) in (np.float64, np.longdouble)


def _narrow(dtype: np.dtype) -> bool:
    """Whether these are floats of fewer bits than float32."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize < 4


def as_wide_as(like: Tree, tree: Tree) -> Tree:
    """The tree with its floats converted to the widest of `like`'s, if that is wider.

    Running statistics in float32 cannot take those of a batch in float64.
    """
    widest = max((leaf.dtype for leaf in jax.tree.leaves(like) if _is_float(leaf)), key=_bits, default=None)

    def widened(leaf: Any) -> Any:
        return (
            leaf.astype(widest)
            if widest is not None and _is_float(leaf) and _bits(leaf.dtype) < _bits(widest)
            else leaf
        )

    return jax.tree.map(widened, tree)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _bits(dtype: Any) -> int:
    return int(jnp.finfo(dtype).bits)


def to_numpy(tree: Tree) -> Tree:
    """The tree with every JAX array made a NumPy array (0-d ones become NumPy scalars)."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[()] if isinstance(leaf, jax.Array) else leaf, tree)


def numpy_in_float64(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: computes NumPy or Python numbers in float64, returns NumPy; JAX arrays and tracers pass unchanged."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = jax.tree.leaves((args, kwargs))
        if is_traced(leaves) or not wants_float64(leaves):
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            return cast(R, to_numpy(function(*args, **kwargs)))

    return wrapped


def compiled(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator that compiles a method as one program for an instance and its arguments' shapes, not one for each step.

    The instance has to be hashable, and the arguments numbers or arrays. Inside a JAX transformation nothing changes,
    and an instance with traced numbers is part of one.
    """
    program = jax.jit(method, static_argnums=0, inline=True)

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, (method if has_traced_numbers(args[0]) else program)(*args, **kwargs))

    return call


def float_array(value: object, name: str = "the argument") -> jax.Array:
    """A floating-point JAX array, of anything that `arrays.real_array` takes; `name` is the argument's name in errors.

    Float32 and float64 keep their dtype as far as the x64 flag allows, narrower floats become float32 without loss, and
    integers and booleans become the default float.
    """
    if isinstance(value, float | int):
        return jnp.asarray(value, jnp.zeros(()).dtype) if isinstance(value, int) else jnp.asarray(value)
    array = real_array(value, name)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(array).astype(jnp.float32) if _narrow(array.dtype) else jnp.asarray(array)
    if isinstance(array, np.ndarray):  # before JAX makes int32 of int64
        array = array.astype(np.float64)
    return jnp.asarray(array).astype(jnp.zeros(()).dtype)
