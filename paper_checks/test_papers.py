"""The framework knows no paper: a second one is a folder and one name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ntk_analysis import cli, paper_checks
from ntk_analysis.paper_checks import judge, papers
from ntk_analysis.paper_checks.mimicnorm import PAPER

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
    assert list(papers.claim_checks()) == [*PAPER.claims, "sum_of_squares"]
    assert judge.run("sum_of_squares").as_recorded
    assert not judge.run("sum_of_squares", theory=3).as_recorded
    status, out, _ = command("--only", "sum_of_squares", "--report", tmp_path / "out")
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
    ((name, job),) = network_jobs("x.py:f", ["finite"], Setting(), None)
    judged = job(Setting())
    assert (name, str(judged.verdict), judged.paper.name) == ("finite", "holds", "Pythagoras")
    assert [*papers.network_checks()] == [*PAPER.network_claims, "finite"]


def test_claims_of_one_name_are_told(second, monkeypatch):
    monkeypatch.setattr(papers, "PAPERS", (*papers.PAPERS, "pythagoras"))
    with pytest.raises(ValueError, match=r"'sum_of_squares' is one of Pythagoras and one of Pythagoras: rename"):
        papers.claim_checks()


def test_an_unknown_claim_lists_those_of_all_papers(second):
    with pytest.raises(ValueError, match=r"unknown claim 'cubes': choose from eq4, .*, last_acc, sum_of_squares"):
        judge.run("cubes")


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
    """Its files have neither the name, the number nor a claim of the paper, but for the one line that lists papers."""
    files = [path for path in [*FOLDER.glob("*.*"), *(FOLDER / "report").iterdir()] if path.suffix != ".pyc"]
    assert len(files) > 15
    for path in files:
        if path.is_file() and not path.name.startswith("test_"):
            text = path.read_text(encoding="utf-8").replace('PAPERS = ("mimicnorm",)', "")
            assert not re.search(rf"mimicnorm|{re.escape(PAPER.arxiv)}", text, re.IGNORECASE), path
            named = set(re.findall(r"[\"'`](\w+)[\"'`]", text)) & {*PAPER.claims, *PAPER.network_claims}
            assert named <= {"same"}, path  # a word of the table of verdicts, too
