"""The wheel: small, without tests and gallery, and complete: its code runs from it, in an environment of its own."""

import ast
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 2 * 10**6  # bytes: code and the records of studies, no data set
OWN = ("figures", "paper_checks")  # packages that a user, too, may have

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which builds the wheel, is not installed"),
]

USE = """
import numpy as np
import ntk_analysis as ntk
from ntk_analysis import spectrum
assert "site-packages" in ntk.__file__, ntk.__file__
kernel = ntk.infinite_kernel(ntk.networks.fully_connected(3, 1, "weight_mean"), np.eye(4))
assert spectrum.condition_number(kernel) < 2
kernel.save("k.npz")
"""


def python_files(folder):
    """Those of a folder of the repository, but for tests and for what names the two folders in a checkout."""
    tests = {*(ROOT / folder).rglob("test_*.py"), *(ROOT / folder).rglob("conftest.py")}
    return {*(ROOT / folder).rglob("*.py")} - tests - {ROOT / "ntk_analysis" / f"{name}.py" for name in OWN}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)], check=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_what_is_in_it(wheel):
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if "gallery" in name or "conftest" in name or "/test_" in name or ".png" in name]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ntk_analysis"}
    folders = {"ntk_analysis": "", "figures": "ntk_analysis/", "paper_checks": "ntk_analysis/"}
    sources = {above + str(path.relative_to(ROOT)) for name, above in folders.items() for path in python_files(name)}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "ntk_analysis/py.typed" in names
    assert any(name.endswith("runs.jsonl") for name in names), "recorded runs are read by the claims"


def test_it_runs_where_nothing_else_of_the_repository_is(wheel, tmp_path):
    """Its dependencies are those of this environment: which of them the wheel asks for is the next test's.

    The user's folder has packages that are called as two folders of the repository.
    """
    for name in OWN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the user's own')")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    packages = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "dependencies.pth").write_text(str(Path(pytest.__file__).resolve().parent.parent))
    for command in (
        ["-c", USE],
        ["-m", "ntk_analysis.cli", "--help"],
        ["-m", "ntk_analysis.cli", "check", "--only", "eq4"],
        ["-m", "ntk_analysis.cli", "figures", "condition_number", "fig4", "--jobs", "2", "--out", "out"],
    ):
        result = subprocess.run(
            [python, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"condition_number", "fig4"}
    assert (tmp_path / "k.npz").is_file()


def test_what_it_asks_for_is_not_of_the_development_group(wheel):
    """No module of the wheel imports what only the tests, the linters or the site install."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    wanted = [
        line.partition(":")[2].strip().lower() for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    nodes = [node for text in sources for node in ast.walk(ast.parse(text))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    imported = {name.partition(".")[0] for name in names}
    for tool in ("pytest", "hypothesis", "mypy", "ruff", "mkdocs"):
        assert not [line for line in wanted if line.startswith(tool) and "extra" not in line]
        assert tool not in imported
