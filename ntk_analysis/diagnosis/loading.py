"""A user's own network, named as MODULE:FUNCTION or FILE.py:FUNCTION."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ntk_analysis import networks
from ntk_analysis.common.extras import how_to_install
from ntk_analysis.common.messages import first_line
from ntk_analysis.empirical.whole_models import refuse_whole_models
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params


def load_network(target: str) -> tuple[Any, Params, Any]:
    """The triple (f, params, x) from MODULE:FUNCTION, a module importable from the current folder or a .py file's path.

    The function returns (f, params, x), or (module, x) with a module of PyTorch, Equinox or Flax NNX, which is taken in
    evaluation mode.

    Raises:
        ValueError: the text is not of this form, there is no such function, or it does not return (f, params, x); or
            the user's code raises another error, which the message names.
        ImportError: there is no such module, or an extra is missing.
        FileNotFoundError: there is no such file.
    """
    name, colon, function = target.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise ValueError(f"got {target!r}, expected MODULE:FUNCTION or FILE.py:FUNCTION, as in mynet.py:network")
    with _importing_from(Path(name).parent if name.endswith(".py") else Path()):
        maker = getattr(_user_module(name), function, None)
        if not callable(maker):
            raise ValueError(f"{name} has no function {function!r}: write one that returns (f, params, x)")
        try:
            made = maker()
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            if isinstance(error, ImportError) and (cure := how_to_install(error)):
                raise ImportError(f"{target} raised {first_line(error)}{cure}") from error
            raise ValueError(f"{target} raised {type(error).__name__}: {first_line(error)}") from error
    if isinstance(made, tuple) and len(made) == 2 and (taken_apart := _bridge(made[0])) is not None:
        made = taken_apart(*made)
    if not isinstance(made, tuple) or len(made) != 3:
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ValueError(
            f"{target} returned {got}, expected the tuple (f, params, x), or (module, x) with a module of PyTorch, "
            "Equinox or Flax NNX"
        )
    f, params, x = made
    if not isinstance(f, Layer) and not callable(f):
        raise TypeError(f"{target} returned f of type {type(f).__name__}, expected a function of (params, x)")
    refuse_whole_models(f, params)
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{target} returned x of type {type(x).__name__}, expected an array (n, ...)")
    return f, params, x


def _bridge(module: object) -> Callable[..., Any] | None:
    """The function that takes a module of this kind apart; the class of a library not imported has no instances."""
    bridges = {
        ("torch.nn", "Module"): networks.from_torch,
        ("equinox", "Module"): networks.from_equinox,
        ("flax.nnx", "Module"): networks.from_nnx,
    }
    for (library, name), bridge in bridges.items():
        if isinstance(module, getattr(sys.modules.get(library), name, ())):
            return bridge
    return None


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _user_module(name: str) -> ModuleType:
    try:
        return _module_of_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except FileNotFoundError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImportError(f"no module {name!r} can be imported from here: a file is FILE.py:FUNCTION") from error
        raise ImportError(f"{name} cannot be imported: {first_line(error)}{how_to_install(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ImportError(f"importing {name} raised {type(error).__name__}: {first_line(error)}") from error


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_loaded_{path.stem}", path)  # hides no module of that name
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickles look for it there
    spec.loader.exec_module(module)
    return module
