"""How public functions are called: few arguments by position, the others by name."""

import importlib
import importlib.util
import inspect
import pkgutil
from dataclasses import is_dataclass

import ntk_analysis
from ntk_analysis.layers import Layer
from ntk_analysis.training import Recipe
from ntk_analysis.training.sweep import Grid

BY_POSITION = 4
KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def members(name, value):
    """Names and functions of a public function, or of a class; the fields of a record are no arguments of a call."""
    if inspect.isfunction(value):
        yield name, value
    elif inspect.isclass(value):
        for key, each in vars(value).items():
            function = each.__func__ if isinstance(each, classmethod | staticmethod) else each
            made = key == "__init__" and (not is_dataclass(value) or issubclass(value, Layer | Recipe | Grid))
            if inspect.isfunction(function) and (made or not key.startswith("_")):
                yield f"{name}.{key}", function


def public_functions():
    """Names and functions, methods and constructors of every module of the library, the command line's included."""
    for module in pkgutil.walk_packages(ntk_analysis.__path__, "ntk_analysis."):
        if module.name.endswith(("torch_networks", "torch_axes")) and importlib.util.find_spec("torch") is None:
            continue  # of an extra
        if not module.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if not name.startswith("_") and getattr(value, "__module__", None) == module.name:
                    yield from members(f"{module.name}.{name}", value)


def by_position(function):
    parameters = inspect.signature(function).parameters.items()
    return [name for name, each in parameters if each.kind in KINDS and name not in ("self", "cls")]


def test_at_most_four_arguments_go_by_position():
    others = "ntk_analysis.compat."  # names and arguments are those of another library
    functions = {name: each for name, each in public_functions() if not name.startswith(others)}
    assert len(functions) > 500
    assert {name: found for name, each in functions.items() if len(found := by_position(each)) > BY_POSITION} == {}
