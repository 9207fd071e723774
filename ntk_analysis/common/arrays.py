"""What the library takes as an array of real numbers: one rule, for inputs, kernels, targets and single numbers.

Taken are floating-point numbers, integers and booleans (0 and 1), from JAX, NumPy, pandas or nested lists. All
computation is in float32 or float64, and so numbers of other widths are converted once, where they come in:
    bfloat16, float16   have their exact values in float32, in which functions of arrays compute. Kernels and targets
                        that are analysed in float64 (`spectrum`, `alignment`, `regression`) keep the rounding that they
                        arrived with. A network of one's own computes in whatever its parameters are; see `empirical`.
    longdouble          becomes float64.
Refused are masked arrays, whose mask no computation here would see, complex numbers, whose imaginary part would be
lost, even where it is 0, sparse matrices, text, dates, missing values and other objects.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class NotRealNumbersError(TypeError, ValueError):
    """The argument is not an array of real numbers. It is a ValueError, too, as scikit-learn expects of estimators."""


def real_array(value: object, name: str) -> jax.Array | np.ndarray:
    """`value` as an array: JAX arrays and tracers are unchanged; all else becomes NumPy, in its own dtype or float64.

    Args:
        value: array of JAX or NumPy, or anything that NumPy reads as an array.
        name: name of the argument, for the message.

    Raises:
        NotRealNumbersError: the value is not an array of real numbers; the message says what to do.
    """
    check_dense(value, name)
    if isinstance(value, jax.Array):
        array: jax.Array | np.ndarray = value
    elif any(isinstance(leaf, jax.Array) for leaf in _parts(value)):
        array = jnp.asarray(value)
    else:
        array = _from_numpy(value, name)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise NotRealNumbersError(
            f"Complex data not supported: {name} has dtype {array.dtype}, expected real numbers; pass {name}.real, or "
            "real and imaginary parts as separate features"
        )
    known = array.dtype == bool or any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not known or array.dtype.kind == "m":  # durations, which NumPy counts among the integers
        raise NotRealNumbersError(f"{name} has dtype {array.dtype}, expected real numbers: convert it")
    return array


def concrete(value: object, name: str) -> np.ndarray:
    """`value` as a NumPy array, outside JAX's transformations.

    Raises:
        NotRealNumbersError: the value is not an array of real numbers, as for `real_array`.
        TypeError: the value is a tracer.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in _parts(value)):
        raise TypeError(f"{name} is a JAX tracer, expected concrete arrays: call it outside jit, grad, vmap")
    return np.asarray(real_array(value, name))


def whole_number(value: object, name: str, most: int | None = None) -> int:
    """A whole number >= 1, of Python or NumPy, as an int.

    Raises:
        TypeError: it is no integer; True and False are none.
        ValueError: it is below 1, or above `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        shown = (
            f"{name}={value!r}" if isinstance(value, str | float | bool | None) else f"{name}: {type(value).__name__}"
        )
        raise TypeError(f"got {shown}, expected a whole number")
    if value < 1 or (most is not None and value > most):
        raise ValueError(f"got {name}={value}, expected {f'1 to {most:,}' if most else 'at least 1'}")
    return int(value)


def check_dense(value: object, name: str) -> None:
    """Raises NotRealNumbersError for a sparse matrix or a masked array, even if no entry is masked.

    The rows of a list are checked, too.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise NotRealNumbersError(
            f"{name} is a masked array, whose mask would be ignored: leave masked inputs out, or fill them and pass "
            f"{name}.filled(0)"
        )
    if isinstance(value, list | tuple):
        for part in value:
            check_dense(part, name)
    if hasattr(value, "toarray"):
        raise NotRealNumbersError(f"{name} is a sparse matrix, expected a dense array: pass {name}.toarray()")


def _parts(value: object) -> list[Any]:
    """The entries of nested lists; for anything else, the value itself."""
    if isinstance(value, list | tuple):
        return [part for entry in value for part in _parts(entry)]
    return [value]


def _from_numpy(value: object, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, and what other libraries refuse to hand over
        raise NotRealNumbersError(f"{name} is not read as an array: {str(error).splitlines()[0]}") from error
    if array.dtype == object:
        return _from_objects(array, name)
    if array.dtype == np.longdouble:
        with np.errstate(over="ignore"):  # infinite values are refused where they are used
            return array.astype(np.float64)
    return array


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Objects that are real numbers, such as those in a table of mixed columns, as float64."""
    for place, entry in np.ndenumerate(array):
        if not isinstance(entry, numbers.Real | np.bool_):
            where = f"{name}[{', '.join(map(str, place))}]" if place else name
            if not place:
                raise NotRealNumbersError(
                    f"{name} is a {type(entry).__name__}, expected an array of numbers: are the arguments in order?"
                )
            raise NotRealNumbersError(
                f"{where} is a {type(entry).__name__}: the argument must be free of strings, missing values and other "
                "objects, an array of numbers"
            )
    return array.astype(np.float64)
