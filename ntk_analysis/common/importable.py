"""Pickles of objects that hold a function: the function goes along as the name by which it is imported.

pickle does so by itself for functions of Python, and fails for those of JAX (`jnp.tanh`, `jax.nn.relu`, what `jax.jit`
returns), for they name the function that they wrap.
"""

import functools
import importlib
import pickle
import sys
from dataclasses import dataclass
from typing import Any


class PickledByName:
    """Base class of immutable dataclasses that have functions among their fields.

    Raises, when it is pickled:
        pickle.PicklingError: a function cannot be imported, for example a lambda.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: _stored(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, stored in state.items():
            object.__setattr__(self, name, _function(stored))

    def __copy__(self) -> "PickledByName":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "PickledByName":
        return self


@dataclass(frozen=True)
class _Name:
    """The place from which a function is imported."""

    module: str
    qualname: str

    def function(self) -> Any:
        return functools.reduce(getattr, self.qualname.split("."), importlib.import_module(self.module))


@dataclass(frozen=True)
class _Partial:
    """A `functools.partial` of a stored function."""

    stored: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    def function(self) -> Any:
        return functools.partial(_function(self.stored), *self.args, **self.keywords)


def _function(stored: Any) -> Any:
    return stored.function() if isinstance(stored, _Name | _Partial) else stored


def _stored(value: Any) -> Any:
    """The object that stands for a value in a pickle, most often the value itself."""
    if isinstance(value, functools.partial):
        return _Partial(_stored(value.func), value.args, value.keywords)
    if not callable(value) or _is_picklable(value):
        return value
    module, own = getattr(value, "__module__", None), getattr(value, "__qualname__", type(value).__name__)
    held = vars(sys.modules[module]) if module in sys.modules else {}
    along = _takes_functions_along()
    # a wrapped function may stand under another name than its own; functions of a script come and go
    names = (own, *held) if module != "__main__" else () if along else (own,)
    for name in names:
        if held.get(name) is value:
            return _Name(str(module), name)
    if along:
        return value
    raise pickle.PicklingError(
        f"function {own} of {module} cannot be pickled, for it is not what is imported by this name: define it at the "
        "top level of a module, or give an activation by its name"
    )


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _takes_functions_along() -> bool:
    """Whether the current pickler takes functions by value, as cloudpickle does for Dask and joblib."""
    frame: Any = sys._getframe()
    while frame is not None:
        if {"cloudpickle", "dill"} & set(frame.f_globals.get("__name__", "").split(".")):
            return True
        frame = frame.f_back
    return False
