"""The framework knows no paper: a second one is a folder and one name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ntk_analysis import cli, paper_checks
from ntk_analysis.paper_checks import judge, papers, plugins
from ntk_analysis.paper_checks.mimicnorm import PAPER
from ntk_analysis.paper_checks.testing import cases

FOLDER = Path(paper_checks.__path__[0])
FOLDERS = ("benchmarks", "docs", "examples", "figures", "ntk_analysis", "paper_checks", "tests")
SECOND = """
from ..contract import Paper

PAPER = Paper("Pythagoras", "On right triangles", "", claims=("sum_of_squares",), network_claims=("finite",))
"""
CLAIM = """
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import rounding

CLAIM = Claim("sum_of_squares", "the hypotenuse", "Squares add up.", "Book I", Verdict.HOLDS, "They do.")
THEORY = 2
WRONG = {"cubes": 3}

def check(setting, theory=THEORY):
    evidence = Evidence()
    evidence.stated(
        "5^n", expected=3**theory + 4**theory, measured=5**theory, tolerance=rounding(1e-12, "integers")
    )
    return evidence
"""
FINITE = """
from ...contract import Claim, Evidence
from ...tolerances import resolution

CLAIM = Claim("finite", "a right network", "Its outputs have a length.", "Book II", None, "")

def check(setting, subject):
    evidence = Evidence()
    evidence.stated("inputs", expected=4, measured=len(subject), tolerance=resolution(0.5, "a count"))
    return evidence
"""


@pytest.fixture
def second(tmp_path, monkeypatch):
    """A folder of a second paper beside the first one, and its name in `PAPERS`."""
    own = tmp_path / "papers" / "pythagoras" / "own_network"
    own.mkdir(parents=True)
    (own.parent / "__init__.py").write_text(SECOND)
    (own.parent / "sum_of_squares.py").write_text(CLAIM)
    (own / "__init__.py").write_text("")
    (own / "finite.py").write_text(FINITE)
    monkeypatch.setattr(paper_checks, "__path__", [*paper_checks.__path__, str(tmp_path / "papers")])
    monkeypatch.setattr(papers, "PAPERS", (*papers.PAPERS, "pythagoras"))
    yield
    for name in [name for name in sys.modules if "pythagoras" in name]:
        del sys.modules[name]


@pytest.fixture
def command(monkeypatch, capsys):
    """command(arguments): status, output and errors of `ntk-analysis check`."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


def test_a_second_paper_is_a_folder_and_one_name(second, command, tmp_path):
    assert list(papers.claim_checks())[:: len(papers.claim_checks()) - 1] == [PAPER.claims[0], "sum_of_squares"]
    assert judge.run("sum_of_squares").as_recorded
    assert not judge.run("sum_of_squares", theory=3).as_recorded
    status, out, _ = command("--paper", "pythagoras", "--report", tmp_path / "out")
    assert status == 0
    assert re.match(r"sum_of_squares +holds", out)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h1>The claims of the Pythagoras paper, checked</h1>" in page
    assert "MimicNorm" not in page.partition("<details>")[0]


def test_a_second_paper_has_its_questions_to_a_network(second, monkeypatch):
    from ntk_analysis.paper_checks import subject
    from ntk_analysis.paper_checks.command import network_jobs
    from ntk_analysis.paper_checks.contract import Setting

    monkeypatch.setattr(subject, "subject_of", lambda target, setting, axes: [0] * 4)
    ((name, job),) = network_jobs("x.py:f", papers.chosen(["finite"], papers.network_checks()), Setting(), None)
    judged = job(Setting())
    assert (name, str(judged.verdict), judged.paper.name) == ("finite", "holds", "Pythagoras")
    assert [*papers.network_checks()] == [*PAPER.network_claims, "finite"]


def test_claims_of_one_name_are_told(second, monkeypatch):
    monkeypatch.setattr(papers, "PAPERS", (*papers.PAPERS, "pythagoras"))
    with pytest.raises(ValueError, match=r"'sum_of_squares' is one of Pythagoras and one of Pythagoras: rename"):
        papers.claim_checks()


def test_an_unknown_claim_lists_those_of_all_papers(second):
    with pytest.raises(ValueError, match=r"unknown claim 'cubes': choose from eq4, .*last_acc, .*sum_of_squares"):
        judge.run("cubes")


def given(claim):
    """A claim as it is written outside of this package, where nothing is imported relatively from it."""
    return claim.replace("from ..", "from ntk_analysis.paper_checks.")


ALONE = (
    given(CLAIM.replace("import Claim,", "import Claim, Paper,"))
    + """
PAPER = Paper("Alone", "A paper in one file", "", claims=("sum_of_squares",), authors="A. Author", url="https://example.org/")
"""
)
FOLDER_OF_CLAIMS = {
    "__init__.py": given(SECOND).replace(', network_claims=("finite",)', ""),
    "sum_of_squares.py": given(CLAIM).replace("THEORY = 2", "from .powers import THEORY"),
    "powers.py": "THEORY = 2",
}


@pytest.fixture
def outside(tmp_path):
    """Writes the files of a paper into a folder, and forgets afterwards what was imported."""
    before = set(sys.modules)

    def written(files, name="outside_paper"):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
        return folder

    yield written
    for name in set(sys.modules) - before:
        if name.startswith(("given_papers.", "outside_paper")):
            del sys.modules[name]


def test_a_paper_is_a_file(outside, command, tmp_path):
    file = outside({"alone.py": ALONE}) / "alone.py"
    status, _, err = command("--paper", file, "--report", tmp_path / "out")
    assert (status, err) == (0, "")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h1>The claims of the Alone paper, checked</h1>" in page
    assert '“A paper in one file” (A. Author) (<a href="https://example.org/">' in page
    assert "<summary>Source: <code>alone.py</code></summary>" in page
    assert "5^n" in page.partition("<details>")[2]


def test_a_paper_is_a_folder(outside, command, tmp_path):
    """Its modules import one another; its claims stand in the report beside those of the papers that are here."""
    folder = outside(FOLDER_OF_CLAIMS)
    arguments = ("--paper", f"{folder}/", "--paper", "mimicnorm", "--only", "sum_of_squares", "--only", "eq4")
    status, out, err = command(*arguments, "--report", tmp_path / "out")
    assert (status, err) == (0, "")
    assert re.match(r"sum_of_squares +holds .*\neq4 +holds", out)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h1>The claims of the Pythagoras and MimicNorm papers, checked</h1>" in page
    assert "<h3>Pythagoras</h3>" in page
    assert "<code>outside_paper/sum_of_squares.py</code>" in page
    assert "sum_of_squares  the hypotenuse (Book I): holds" in command("--list", "--paper", folder)[1]
    assert [str(case) for case in cases(folder)] == ["sum_of_squares", "sum_of_squares, cubes"]
    for case in cases(folder):
        case()


def test_an_installed_package_brings_papers(outside, command, monkeypatch, tmp_path):
    outside(FOLDER_OF_CLAIMS)
    facts = tmp_path / "outside-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[ntk_analysis.papers]\ntriangles = outside_paper\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "triangles, “On right triangles”\n  sum_of_squares" in command("--list")[1]
    status, out, _ = command("--paper", "triangles")
    assert (status, out.split()[:2]) == (0, ["sum_of_squares", "holds"])
    with pytest.raises(
        ValueError, match=r"unknown paper 'circles': choose from mimicnorm, .*triangles, all, or give FILE"
    ):
        papers.packages_of(["circles"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "there is no file .*__init__.py; expected FILE.py, or a folder"),
        ({"__init__.py": "1 / 0"}, "importing .*__init__.py raised ZeroDivisionError: division by zero"),
        ({"__init__.py": "paper = 1"}, "expected PAPER = Paper"),
        ({"__init__.py": FOLDER_OF_CLAIMS["__init__.py"]}, "no module sum_of_squares.py in .*, which PAPER names"),
        (FOLDER_OF_CLAIMS | {"sum_of_squares.py": "import nothing_of_this_name"}, "raised ModuleNotFoundError"),
        (FOLDER_OF_CLAIMS | {"sum_of_squares.py": "CLAIM = 1"}, "expected CLAIM = Claim"),
        (
            FOLDER_OF_CLAIMS | {"sum_of_squares.py": given(CLAIM).replace('"sum_of_squares"', '"cubes"')},
            "got the claim 'cubes'; expected the id 'sum_of_squares'",
        ),
    ],
)
def test_a_folder_that_is_no_paper_is_told(outside, command, files, words):
    status, out, err = command("--paper", f"{outside(files)}/")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(words, err), err


def test_a_file_has_one_claim(outside, command):
    two = ALONE.replace('claims=("sum_of_squares",)', 'claims=("sum_of_squares", "cubes")')
    status, _, err = command("--paper", outside({"alone.py": two}) / "alone.py")
    assert (status, "got 2 claims; a file has one" in err) == (2, True)


def test_a_case_tells_what_is_wrong(outside):
    right, wrong = cases(
        outside({"alone.py": ALONE.replace("WRONG = {", 'WRONG = {"squares": 2} if 1 else {')}) / "alone.py"
    )
    right()
    with pytest.raises(AssertionError, match="sum_of_squares: the check cannot tell squares from the theory"):
        wrong()
    with pytest.raises(ValueError, match="expected WRONG, named wrong theories"):
        cases(outside({"bare.py": ALONE.replace("WRONG = {", "RIGHT = {")}, "bare") / "bare.py")


def test_a_new_paper_runs(command, tmp_path):
    status, out, _ = command("--new", tmp_path / "mine")
    assert (status, "check it:" in out) == (0, True)
    status, out, _ = command("--paper", f"{tmp_path / 'mine'}/")
    assert (status, out.split()[:2]) == (0, ["half", "holds"])
    for case in cases(tmp_path / "mine"):
        case()
    assert command("--new", tmp_path / "mine")[2].endswith("name a folder that is new or empty\n")
    assert "--paper has no effect with --new" in command("--new", tmp_path / "more", "--paper", "all")[2]
    for name in [name for name in sys.modules if name.startswith("given_papers.mine")]:
        del sys.modules[name]


LOAD = """
import sys
from ntk_analysis.figures import names, parallel
from ntk_analysis.paper_checks import command, papers
for check in [*papers.claim_checks().values(), *papers.network_checks().values()]:
    check.load()
print("matplotlib" in sys.modules)
"""


@pytest.mark.full  # a process that imports everything
def test_checks_import_no_drawing_module_and_no_package_of_the_user(tmp_path):
    for name in ("figures", "paper_checks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a package of the user')")
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_checks_name_no_drawing_module():
    for path in {*FOLDER.rglob("*.py")} - {*FOLDER.rglob("test_*.py")}:
        assert not re.search(r"^ *(from|import) (matplotlib|ntk_analysis\.figures)", path.read_text("utf-8"), re.M), (
            path
        )


def test_the_two_folders_have_one_name():
    """`import figures` would find a package of the user, or load a second copy."""
    sources = [path for folder in FOLDERS for path in (FOLDER.parent / folder).rglob("*.py")]
    assert len(sources) > 300
    for path in sources:
        assert not re.search(r"^ *(from|import) (figures|paper_checks)\b", path.read_text("utf-8"), re.M), path


def test_the_framework_names_no_paper():
    """Its files have neither the name, the number nor a claim of a paper, but where papers are listed."""
    files = [path for path in [*FOLDER.glob("*.*"), *(FOLDER / "report").iterdir()] if path.suffix != ".pyc"]
    assert len(files) > 15
    known = [plugins.paper_of(package) for package in papers.packages_of(["all"])]
    names = "|".join(map(re.escape, [*papers.PAPERS, *(paper.arxiv for paper in known if paper.arxiv)]))
    claims = {claim for paper in known for claim in (*paper.claims, *paper.network_claims)}
    for path in files:
        if path.is_file() and not path.name.startswith("test_"):
            text = re.sub(r"^PAPERS = \(.*?\)$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
            assert not re.search(names, text, re.IGNORECASE), path
            named = set(re.findall(r"[\"'`](\w+)[\"'`]", text)) & claims
            assert named <= {"same"}, path  # a word of the table of verdicts, too
