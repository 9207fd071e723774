"""The documentation: its tutorials run and print what they say, and every public name stands on an API page."""

import ast
import contextlib
import importlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest
import typer

import ntk_analysis
from ntk_analysis.cli.app import app
from ntk_analysis.paper_checks.report.formulas import formula

from .tiers import full

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))]
RUN = [page for page in PAGES if "```python" in (DOCS / page).read_text("utf-8")]
QUICK = ("computed/distances.md",)
BLOCK = re.compile(r"^```(python|text)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
IDENTIFIERS = {
    name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M)
}


@pytest.fixture
def as_a_user_has_it(monkeypatch, tmp_path):
    """JAX's own defaults, as in `test_examples`, and an empty folder, as its pages write files."""
    import jax

    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.filterwarnings("default")  # Flax's own
@pytest.mark.parametrize("page", [*QUICK, *full(*(page for page in RUN if page not in QUICK))])
def test_the_page_prints_what_it_says(page, as_a_user_has_it):
    """A block of text behind one of Python is what that prints, unless its title says "for instance"."""
    names: dict[str, Any] = {}
    printed = ""
    for language, title, body in BLOCK.findall((DOCS / page).read_text("utf-8")):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(body, page, "exec"), names)
            printed = out.getvalue()
        else:
            assert printed == body or "for instance" in title


def reexported(module):
    """The names that a package hands on: its `__all__`, or what it imports as itself."""
    if hasattr(module, "__all__"):
        return module.__all__
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in imports for alias in node.names if alias.asname == alias.name]


def public_names():
    """Every name that a user is to write, in full."""
    for name in ntk_analysis.__all__:
        if name != "__version__":
            yield f"ntk_analysis.{name}"
            value = getattr(ntk_analysis, name)
            if hasattr(value, "__path__"):  # of a module that is no package, the page shows all that is in it
                yield from (f"ntk_analysis.{name}.{inner}" for inner in reexported(value))


def test_every_public_name_stands_on_an_api_page():
    elsewhere = {f"ntk_analysis.{name}": f"{module}.{name}" for name, module in ntk_analysis._OBJECTS.items()}
    elsewhere["ntk_analysis.AnyKernel"] = "any_kernel"
    names = [*public_names()]
    assert len(names) > 150
    missing = [name for name in names if f"ntk_analysis.{elsewhere.get(name, name[13:])}" not in IDENTIFIERS]
    assert not missing


ARRAYS = re.compile(r"(jax\S*Array|numpy\.ndarray|<class 'numpy\.ndarray'>)( \| (jax\S*Array|numpy\.ndarray|None))*")
SHAPE = re.compile(r"\([\w ]+,[^()]*\)")


def test_every_public_name_says_what_it_is_and_the_shapes_of_its_arrays():
    """Shapes stand in the annotation, in the argument's entry, or in the function that the docstring refers to."""
    unsaid = []
    for name in public_names():
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last)
        if not (inspect.isfunction(value) or inspect.isclass(value)):  # an alias of types is said by its comment
            continue
        words = inspect.getdoc(value)
        if not words:
            unsaid.append(name)
        elif inspect.isfunction(value) and not re.search(r"(see|those of) `", words):
            for parameter in inspect.signature(value).parameters.values():
                entry = re.search(rf"^ *{parameter.name}: (.*(\n {{8,}}.*)*)", words, re.MULTILINE)
                said = entry is not None and (SHAPE.search(entry.group(1)) or "shape" in entry.group(1))
                if ARRAYS.fullmatch(str(parameter.annotation)) and not said:
                    unsaid.append(f"{name}({parameter.name})")
    assert not unsaid


def test_no_api_page_names_what_is_not_there():
    for identifier in IDENTIFIERS:
        module, _, name = identifier.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.import_module(identifier)


def test_every_page_stands_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    assert [page for page in PAGES if f": {page}\n" not in navigation] == []


def test_pictures_are_small_and_there():
    for page in PAGES:
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (DOCS / page).read_text("utf-8")):
            assert (DOCS / page).parent.joinpath(target).stat().st_size <= 300_000


def test_every_command_line_exists():
    text = "".join((DOCS / page).read_text("utf-8") for page in PAGES)
    commands = typer.main.get_group(app).commands
    lines = re.findall(r"ntk-analysis (\w+)([^`\n]*)", text)
    assert len(lines) > 10
    for name, rest in lines:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in rest.split() if word.startswith("--")} <= options


def test_every_formula_is_one_that_the_site_can_draw():
    for page in PAGES:
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", (DOCS / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for block, inline in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL):
            assert formula(block or inline).startswith("<math")
