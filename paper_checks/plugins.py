"""Papers that lie outside of this package: in a file, in a folder, or in a package that was installed."""

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from ntk_analysis.common.extras import how_to_install
from ntk_analysis.common.messages import first_line

from .contract import GIVEN, Claim, Paper

GROUP = "ntk_analysis.papers"
"""Group of the entry points by which an installed package brings a paper: its name, and the package with `PAPER`."""


def installed() -> dict[str, str]:
    """Returns the packages that entry points name as papers, by the papers' names; none is imported."""
    return {point.name: point.module for point in entry_points(group=GROUP)}


def is_path(text: str) -> bool:
    """Whether a text is meant as the path of a paper: it ends in .py, has a separator, or is a folder."""
    return text.endswith(".py") or "/" in text or "\\" in text or Path(text).is_dir()


def given(text: str) -> str:
    """Imports the paper in FILE.py or in FOLDER, and returns the name of its package.

    The name begins with `contract.GIVEN`, so that no other package is hidden.

    Raises:
        ValueError: there is no such file or folder; two of one name.
        ImportError: the import raises.
    """
    path = Path(text)
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        raise ValueError(f"--paper {text}: there is no file {source}; expected FILE.py, or a folder with __init__.py")
    name = GIVEN + path.resolve().stem
    if name in sys.modules:
        there = Path(str(sys.modules[name].__file__))
        if there != source.resolve():
            raise ValueError(f"--paper {text}: another paper is called so, {there}: rename one of them")
        return name
    spec = importlib.util.spec_from_file_location(
        name, source.resolve(), submodule_search_locations=[str(path.resolve())] if path.is_dir() else None
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ImportError(_raised(str(source), error)) from error
    return name


def paper_of(package: str) -> Paper:
    """Returns `PAPER` of a package.

    Raises:
        ImportError: it cannot be imported.
        ValueError: it has none, or a file has more than one claim.
    """
    module = _imported(package)
    paper = getattr(module, "PAPER", None)
    if not isinstance(paper, Paper):
        raise ValueError(f"{module.__file__}: expected PAPER = Paper(...), which names the paper and its claims")
    if not hasattr(module, "__path__") and len(paper.claims) != 1:
        raise ValueError(
            f"{module.__file__}: got {len(paper.claims)} claims; a file has one, more need a folder with a module each"
        )
    return paper


def claim_module(name: str) -> ModuleType:
    """Imports the module that checks a claim.

    Raises:
        ImportError: it cannot be imported.
        ValueError: it has no `CLAIM` or no `check`, or its claim has another id than the paper names.
    """
    module = _imported(name)
    claim, check = getattr(module, "CLAIM", None), getattr(module, "check", None)
    if not isinstance(claim, Claim) or not callable(check):
        raise ValueError(f"{module.__file__}: expected CLAIM = Claim(...) and check(setting, theory=THEORY)")
    ids = module.PAPER.claims if hasattr(module, "PAPER") else (name.rpartition(".")[2],)
    if claim.id not in ids:
        raise ValueError(f"{module.__file__}: got the claim {claim.id!r}; expected the id {ids[0]!r}")
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            place = sys.modules.get(name.rpartition(".")[0])
            where = "" if place is None else f" in {Path(str(place.__file__)).parent}"
            raise ImportError(f"there is no module {name.rpartition('.')[2]}.py{where}, which PAPER names") from error
        raise ImportError(_raised(name, error) + how_to_install(error)) from error
    except (Exception, SystemExit) as error:
        raise ImportError(_raised(name, error)) from error


def _raised(name: str, error: BaseException) -> str:
    return f"importing {name.removeprefix(GIVEN)} raised {type(error).__name__}: {first_line(error)}"
