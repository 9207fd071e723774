"""The report and the command: what they say, of claims made up for the purpose."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from ntk_analysis import cli
from ntk_analysis.paper_checks import judge, papers, report
from ntk_analysis.paper_checks.contract import Claim, Evidence, Paper, Relation, Setting, Verdict
from ntk_analysis.paper_checks.judge import Judged
from ntk_analysis.paper_checks.report import finished, write_report
from ntk_analysis.paper_checks.report.formulas import formula, prose, split
from ntk_analysis.paper_checks.report.html import page
from ntk_analysis.paper_checks.report.markdown import markdown
from ntk_analysis.paper_checks.report.numbers import bar, compared, misses, off_by
from ntk_analysis.paper_checks.report.record import judged_of, record, run_facts
from ntk_analysis.paper_checks.tolerances import quadrature, rounding, sampling

SCHEMA = json.loads(Path(report.__file__).with_name("claims.schema.json").read_text(encoding="utf-8"))
RUN = run_facts(Setting())
PAPER = Paper("Made Up", "Of <nothing>: & all", "2001.00001", ("good", "bad", "broken", "seeded"))
OTHER = Paper("Second", "Another", "", ("own_one",))


def claim(name="made_up", recorded=Verdict.HOLDS, **more):
    facts = {"title": "a < b & c", "statement": "If $x < 1$ then <b>y</b> & z.", "source": "Eq. 1", "summary": "So."}
    return Claim(id=name, recorded=recorded, **(facts | more))


def holding():
    evidence = Evidence()
    evidence.stated(
        "mean",
        expected=[1.0, 2.0],
        measured=[1.001, 2.0],
        tolerance=sampling(0.01, "5 standard errors", 25),
        rival=1.5,
        condition="width < 4 & even",
    )
    evidence.varied(
        "mean",
        expected=3.0,
        measured=2.0,
        tolerance=rounding(0.1, "rounding"),
        condition="bias",
        relation=Relation.AT_MOST,
    )
    evidence.edge("depth / width", 0.25, "breaks <there>")
    evidence.edge("bias", None, "searched 0 to 1")
    evidence.note("a note")
    return evidence


def missing():
    evidence = Evidence()
    evidence.stated("rate", expected=1.0, measured=2.0, tolerance=rounding(1e-12, "rounding"))
    return evidence


def judged_claims():
    return [
        Judged(
            PAPER, claim("held_one", formula=r"\frac{1}{n} \le x", figures=("fig4", "no_such_figure")), holding(), 1.25
        ),
        Judged(PAPER, claim("other_one", figures=("fig4",)), missing(), 0.5),
        Judged(PAPER, claim("open_one", Verdict.OPEN), Evidence(open="needs a GPU"), 0.0),
        Judged(OTHER, claim("own_one", None, summary=""), missing(), 0.1),
        judge.attempt(PAPER, claim("broken_one", Verdict.OPEN), lambda: 1 // 0),
    ]


@pytest.fixture
def records():
    return [record(one, RUN) for one in judged_claims()]


def test_records_follow_the_schema(records):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(records, allow_nan=False)), SCHEMA)


@pytest.mark.parametrize("change", [{"verdict": "true"}, {"expected": "1"}, {"id": "A B"}, {"surprise": 1}])
def test_the_schema_refuses_what_is_none_of_it(records, change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([records[0] | change], SCHEMA)


def test_a_record_has_the_decisive_row_and_the_conditions(records):
    held, other, opened, own, broken = records
    assert (held["verdict"], held["as_recorded"], held["decisive_row"]) == ("holds", True, 0)
    assert (held["expected"], held["measured"], held["tolerance"]) == (1.0, 1.001, 0.01)  # the worse of two entries
    assert held["rows"][0]["entries"] == 2
    assert held["rows"][0]["line"]["file"] == "test_report.py"
    assert held["conditions"] == [
        {"condition": "width < 4 & even", "kind": "as stated", "outcome": "confirmed", "rows": 1},
        {"condition": "bias", "kind": "beyond the claim", "outcome": "confirmed", "rows": 1},
    ]
    assert (other["verdict"], other["as_recorded"]) == ("does not hold", False)
    assert (opened["expected"], opened["decisive_row"], opened["open"]) == (None, None, "needs a GPU")
    assert (own["recorded"], own["as_recorded"]) == (None, True)
    assert (broken["as_recorded"], broken["error"][:17]) == (False, "ZeroDivisionError")


class Reader(HTMLParser):
    """Tags that stand open, ids, and everything that a browser would load."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.links, self.loads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data", "poster") and value]
        self.loads += [attributes["href"]] if tag == "link" else []
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def without_sources(text):
    """The page less the sources on it: that of this file has every word that is looked for."""
    return re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)


def test_the_page_is_whole_and_loads_nothing(records):
    text = page(records, RUN)
    reader = Reader()
    reader.feed(text)
    assert reader.stack == []
    assert len(reader.ids) == len(set(reader.ids))
    inside = {link[1:] for link in reader.links if link.startswith("#")}
    assert inside <= set(reader.ids), inside - set(reader.ids)
    assert all(load.startswith("data:") for load in reader.loads)
    text = without_sources(text)
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"https://arxiv.org/abs/2001.00001"}
    assert "@import" not in text
    assert not re.search(r"url\((?!['\"]?data:)", text)


def test_the_page_and_the_markdown_name_the_papers(records):
    text = without_sources(page(records, RUN))
    assert "<h1>The claims of the Made Up and Second papers, checked</h1>" in text
    assert "Of &lt;nothing&gt;: &amp; all" in text
    assert "Second, Eq. 1" in text
    assert markdown(records, RUN).startswith(
        "# The claims of the Made Up and Second papers, checked\n\n"
        "- Made Up is “Of &lt;nothing>: & all”, arXiv:2001.00001\n- Second is “Another”\n"
    )
    assert "<h1>The claims of the Made Up paper, checked</h1>" in page(records[:1], RUN)


def test_the_page_escapes_text_and_draws_formulas(records):
    text = without_sources(page(records, RUN))
    assert "&lt;b&gt;y&lt;/b&gt; &amp; z." in text
    assert "<b>y</b>" not in text
    assert "width &lt; 4 &amp; even" in text
    assert "breaks &lt;there&gt;" in text
    assert "<mfrac>" in text
    assert "$x" not in text


def test_every_row_links_to_the_line_that_made_it(records):
    text = page(records, RUN)
    for row in records[0]["rows"]:
        anchor = f"test_report-L{row['line']['number']}"
        assert f'href="#{anchor}"' in text
        source = re.search(rf'id="{anchor}" class="linked"><i>\d+</i>([^<]*)', text)
        assert source is not None
        assert "evidence." in source.group(1)


def test_a_figure_stands_once_and_a_missing_one_is_named(records):
    text = without_sources(page(records, RUN))
    assert text.count("data:image/png;base64") == 1
    assert text.count('href="#figure-fig4"') == 1
    assert "ntk-analysis figures no_such_figure" in text


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
MEASURE = """<iframe id="page" src="report.html" style="width: %dpx; height: 2000px; border: 0"></iframe>
<script>
page.onload = () => {
  const inside = page.contentDocument, root = inside.documentElement;
  const over = [...inside.querySelectorAll("table")].map((table) => {
    const card = table.closest("article, section"), padding = getComputedStyle(card).paddingRight;
    return table.getBoundingClientRect().right - card.getBoundingClientRect().right + parseFloat(padding);
  });
  over.push(root.scrollWidth - root.clientWidth);
  document.body.dataset.over = JSON.stringify(over);
};
</script>"""


@pytest.mark.full
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize("pixels", [1400, 1100, 1080, 800, 390])
def test_tables_end_within_their_cards(pixels, tmp_path):
    """As Chromium lays them out: numbers with all digits, long words, the longest verdict. Nor is the page too wide."""
    evidence = Evidence()
    because = "5 standard errors of 10,000 layers of 64 channels, and the quadrature's own error"
    evidence.stated(
        "E[relu'(u) relu'(v)], finite layers",
        expected=-0.49525468,
        measured=-0.49525471,
        tolerance=quadrature(1.2e-11, because),
        condition="a" * 40,
    )
    evidence.varied(
        "mean",
        expected=-1.2345678e-100,
        measured=2.0e280,
        tolerance=quadrature(1e-12, because),
        condition="bias",
        relation=Relation.AT_MOST,
    )
    one = claim(source="Section 3; Karakida et al. 2019 (1906.02926), who say it of the last layer", title="x" * 30)
    judged = [Judged(PAPER, one, evidence, 12345.6), *judged_claims()]
    write_report(tmp_path, judged, Setting())
    (tmp_path / "measure.html").write_text(f"<!DOCTYPE html><body>{MEASURE % pixels}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += ["--window-size=1600,1600", "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *options, (tmp_path / "measure.html").as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    over = json.loads(re.findall(r'data-over="([^"]*)"', done.stdout)[0])
    assert len(over) == 7  # the overview of two papers, four tables of evidence, and the page
    assert max(over) <= 1


def test_the_page_says_what_differs(records):
    alert = page(records, RUN).partition('role="alert"')[2].partition("</section>")[0]
    assert "found “does not hold”, recorded “holds”" in alert
    assert "ZeroDivisionError" in alert
    assert "own_one" not in alert
    assert 'role="alert"' not in page(records[:1], RUN)


def test_markdown_has_every_claim_and_row(records):
    text = markdown(records, RUN)
    for one in records:
        assert f"## {one['id']}: " in text
    assert "**does not hold** (recorded: holds)" in text
    assert "$x < 1$ then &lt;b>y" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in tables} == {8, 9}


def test_formulas_between_dollar_signs():
    assert split("a $b$ c") == [(False, "a "), (True, "b"), (False, " c")]
    assert split("costs 3 $") == [(False, "costs 3 $")]
    assert split("$b$") == [(True, "b")]
    assert prose("1 < 2") == "1 &lt; 2"
    assert "http" not in formula(r"\mathbb{E}[x] < \frac{1}{2}")
    assert formula(r"\frac{") == r"<code>\frac{</code>"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((1.466942, 1.4671, 3e-4), ("1.4669", "1.4671", "0.0003")),
        ((0.75306, 0.77601, 1e-13), ("0.753", "0.776", "1e-13")),  # what differs, not what could be resolved
        ((0.5, 0.5, 1e-15), ("0.5", "0.5", "1e-15")),
        ((1.0, 1.001, 0.01), ("1.000", "1.001", "0.01")),
        ((-1.0, 1.69e-5, 2.1e-4), ("-1", "1.69e-5", "0.00021")),
        ((0.0, -1.2e-7, 1e-6), ("0", "-1.2e-7", "1e-6")),
        ((0.0, 0.0, 1e-6), ("0", "0", "1e-6")),
        ((6.57e8, 6.571e8, 1e5), ("6.570e8", "6.571e8", "1e5")),
        ((9.9996e-7, 1.2345e-6, 1e-9), ("1.00e-6", "1.23e-6", "1e-9")),
        ((1200.0, 1234.5, 10.0), ("1200", "1234", "10")),
        ((7.0, 7.0, 0.0), ("7", "7", "0")),
        ((1.0, float("inf"), 0.1), ("1", "inf", "0.1")),
    ],
)
def test_numbers_have_the_digits_that_matter(values, texts):
    assert compared(*values) == texts


def test_a_terminal_says_how_far_a_comparison_is_off():
    told = [off_by(miss) for miss in (0, 1e-5, 0.372, 1.0, 12.34, 1e12, math.inf)]
    assert told[:3] == ["nothing", "less than 0.01 of the tolerance", "0.37 of the tolerance"]
    assert told[3:5] == ["1 of the tolerance", "12.3 tolerances"]
    assert told[5:] == ["more than 1,000 tolerances"] * 2


def test_bars_and_misses():
    assert [bar(miss) for miss in (0, 0.5, 1, 1e6, 1e12, None)] == [0, 0.25, 0.5, 1, 1, 1]
    assert [misses(miss) for miss in (0, 1e-5, 0.372, 12345.0, None)] == ["0", "< 0.01", "0.37", "1.2e4", "> 1e300"]


def test_reports_are_written_together(tmp_path):
    folder = tmp_path / "new" / "report"
    path = write_report(folder, judged_claims(), Setting(seed=3, full=True), "mynet.py:network")
    assert sorted(file.name for file in folder.iterdir()) == ["claims.json", "claims.md", "report.html"]
    assert "Checks of mynet.py:network" in path.read_text(encoding="utf-8")
    records = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    assert {(one["run"]["seed"], one["run"]["sizes"]) for one in records} == {(3, "full")}


def test_an_unwritable_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="name another folder"):
        write_report(tmp_path / "file", judged_claims(), Setting())


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls `ntk-analysis check` on three made-up claims: one as recorded, one not, one broken."""
    modules = {
        "good": SimpleNamespace(CLAIM=claim("good"), check=lambda setting: holding()),
        "bad": SimpleNamespace(CLAIM=claim("bad"), check=lambda setting: missing()),
        "broken": SimpleNamespace(CLAIM=claim("broken", Verdict.OPEN), check=lambda setting: 1 // 0),
        "seeded": SimpleNamespace(
            CLAIM=claim("seeded"), check=lambda setting: holding() if (setting.seed, setting.full) == (7, True) else 0
        ),
    }
    package = "ntk_analysis.paper_checks.made_up"
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(PAPER=PAPER, __path__=[]))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"{package}.{name}", module)
    monkeypatch.setattr(papers, "PAPERS", ("made_up",))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_as_recorded_is_status_0(run):
    status, out, err = run("--only", "good")
    assert (status, err) == (0, "")
    assert re.match(r"good +holds +0\.0 s\n", out)
    assert re.search(r"good +holds +the same +1\.000 +1\.001 +0\.01 +0\.1 of the tolerance\n    as stated: ", out)
    assert re.search(r"claim +verdict +on record +expected +measured +tolerance +off by\n", out)


def test_another_verdict_is_status_1_and_told(run, tmp_path):
    status, out, _ = run("--only", "bad", "--only", "good", "--report", tmp_path / "r")
    assert status == 1
    assert (
        "bad: recorded holds, found does not hold\n  refuted, as stated: rate: expected 1, measured 2, tolerance 1e-12"
        in out
    )
    assert "test_report.py:" in out
    assert [one["id"] for one in json.loads((tmp_path / "r" / "claims.json").read_text())] == ["good", "bad"]


def test_a_broken_check_stops_no_other(run, tmp_path):
    status, out, _ = run("--report", tmp_path)
    assert status == 1
    assert "broken: the check raised ZeroDivisionError" in out
    records = json.loads((tmp_path / "claims.json").read_text())
    assert [one["id"] for one in records] == ["good", "bad", "broken", "seeded"]


def test_records_become_claims_again(records):
    for one, found in zip(records, judged_claims(), strict=True):
        read = judged_of(json.loads(json.dumps(one)), found.paper, found.claim)
        assert record(read, RUN) == one
        assert read.evidence == Judged(read.paper, read.claim, found.evidence, 0.0).evidence


def test_a_stopped_run_goes_on_with_what_it_has(run, tmp_path, monkeypatch):
    """A run that is stopped within its third claim keeps two; only a run of the same seed takes them."""
    module = sys.modules["ntk_analysis.paper_checks.made_up.broken"]
    calls = []

    def stopped(_setting):
        calls.append("broken")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check", stopped)
    status, _, err = run("--report", tmp_path)
    assert (status, sorted(file.name for file in tmp_path.iterdir())) == (130, ["unfinished"])
    assert "2 finished claims are in" in err
    assert "add --resume to go on" in err
    monkeypatch.setattr(module, "check", lambda _setting: holding())

    def counted(_setting):
        calls.append("good")
        return holding()

    monkeypatch.setattr(sys.modules["ntk_analysis.paper_checks.made_up.good"], "check", counted)
    assert run("--only", "good", "--report", tmp_path, "--resume", "--seed", 1)[0] == 0  # another seed: run anew
    assert calls == ["broken", "good"]
    assert [file.name for file in (tmp_path / "unfinished").iterdir()] == ["bad.json"]
    assert run("--only", "bad", "--report", tmp_path, "--resume")[1].count("kept by an earlier run") == 1
    assert not (tmp_path / "unfinished").exists()


def test_finished_claims_are_not_run_again(run, tmp_path, monkeypatch):
    kept = [Judged(PAPER, claim(name), holding(), 1.0) for name in ("good", "bad")]
    for one in kept:
        finished.keep(tmp_path, one, RUN)
    finished.keep(tmp_path, judge.attempt(PAPER, claim("broken"), lambda: 1 // 0), RUN)
    assert finished.number_kept(tmp_path) == 2  # one that raised is tried again
    status, out, _ = run("--report", tmp_path, "--resume", "--only", "bad", "--only", "seeded")
    assert status == 1  # `seeded` is another verdict, and `bad` would be if it ran
    assert re.search(r"bad +holds +1\.0 s, kept by an earlier run\n", out)
    assert "good" not in out
    assert [one["id"] for one in json.loads((tmp_path / "claims.json").read_text())] == ["bad", "seeded"]
    assert [file.name for file in (tmp_path / "unfinished").iterdir()] == ["good.json"]


def test_seed_and_sizes_reach_the_checks(run):
    assert run("--only", "seeded", "--seed", 7, "--full")[0] == 0
    assert run("--only", "seeded", "--seed", 7, "--quick")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "god"], "choose from good, bad"),
        (["--quick", "--full"], "exclude each other"),
        (["--seed", "-1"], "--seed"),
        (["--network", "nothing"], "expected MODULE:FUNCTION"),
        (["--report", "FILE"], "name another folder"),
        (["--resume"], "--resume needs --report DIR"),
        (["--resume", "--report", "r", "--network", "mine.py:network"], "with --network all checks run anew"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(run, tmp_path, arguments, words):
    (tmp_path / "FILE").write_text("")
    status, out, err = run(*[tmp_path / word if word == "FILE" else word for word in arguments])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert words in err
