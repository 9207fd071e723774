"""The documentation: its tutorials run and print what they say, and every public name stands on an API page."""

import ast
import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest
from tiers import full

import ntk_analysis

DOCS = Path(__file__).parent.parent / "docs"
TUTORIALS = {path.stem: path for path in sorted((DOCS / "tutorials").glob("*.md"))}
QUICK = ("ordered_or_chaotic",)  # the others take more than 5 s: full
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
@pytest.mark.parametrize("page", [*QUICK, *full(*(name for name in TUTORIALS if name not in QUICK))])
def test_the_tutorial_prints_what_it_says(page, as_a_user_has_it):
    """A block of text behind one of Python is what that prints, unless its title says "for instance"."""
    names, printed, compared = {}, "", 0
    for language, title, body in BLOCK.findall(TUTORIALS[page].read_text("utf-8")):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(body, f"{page}.md", "exec"), names)
            printed = out.getvalue()
        elif "for instance" not in title:
            assert printed == body
            compared += 1
    assert compared


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
    elsewhere = {"ntk_analysis.Kernel": "kernel.Kernel", "ntk_analysis.infinite_kernel": "infinite.infinite_kernel"}
    names = [*public_names()]
    assert len(names) > 150
    missing = [name for name in names if f"ntk_analysis.{elsewhere.get(name, name[13:])}" not in IDENTIFIERS]
    assert not missing


def test_no_api_page_names_what_is_not_there():
    for identifier in IDENTIFIERS:
        module, _, name = identifier.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.import_module(identifier)


def test_every_tutorial_stands_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        assert f"{page.relative_to(DOCS)}\n" in navigation


def test_pictures_are_small_and_there():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).stat().st_size <= 300_000
