"""`ntk-analysis diagnose`: a user's own network is loaded, reported and written, and every mistake is one line."""

import json
import sys
from pathlib import Path

import pytest

from ntk_analysis import cli
from ntk_analysis.diagnosis import load_network

from .tiers import full


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "diagnose", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


MODULE = """
import sys
import numpy as np
import jax.numpy as jnp
import sibling

X = np.random.default_rng(0).standard_normal((9, 4))
P = {"w": np.random.default_rng(1).standard_normal((4, 3))}
def f(p, x): return jnp.tanh(x @ p["w"])
def index(p, x): return {}["missing"]
def good(): return f, P, X
def raises(): return {}["missing"]
def leaves(): sys.exit("bye")
def single(): return f
def two(): return f, P
def lists(): return f, P, [[1.0]]
def text(): return f, P, np.array(["a"])
def integers(): return f, P, np.arange(8).reshape(2, 4)
def nan(): return f, {"w": P["w"] * np.nan}, X
def whole(): return f, {"w": np.ones((4, 3), int)}, X
def shapes(): return f, P, X[:, :3]
def several(): return lambda p, x: (f(p, x), x), P, X
def scalar(): return lambda p, x: jnp.sum(f(p, x)), P, X
def broken(): return index, P, X
def infinite(): return lambda p, x: f(p, x) / 0.0, P, X
def zero(): return lambda p, x: 0.0 * f(p, x), P, X
def number(): return 3, P, X
def one(): return f, P, X[:1]
def badx(): return f, P, np.where(X > 2, np.nan, X) * np.nan
value = 3
"""


@pytest.fixture
def user(tmp_path):
    (tmp_path / "sibling.py").write_text("")
    (tmp_path / "user_network.py").write_text(MODULE)
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "needs.py").write_text("import no_such_library\n")
    (tmp_path / "stops.py").write_text("raise SystemExit(3)\n")
    yield tmp_path
    for name in ("user_network", "_loaded_user_network", "sibling", "syntax", "needs", "stops"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("target", ["user_network.py:good", *full("user_network:good")])
def test_the_command_reports_and_writes(run, user, target):
    status, out, err = run(target, "--count", 6, "--out", "deeper/d.json", "--memory", "1GiB")
    assert (status, err) == (0, "")
    for words in ("condition number", "learning rate", "6 inputs", "not available", "verdict", "not decidable"):
        assert words in out
    record = json.loads((user / "deeper/d.json").read_text())
    assert record["network"] == target
    assert record["inputs"] == 6
    assert len(record["ntk"]["full"]["eigenvalues"]) == 18
    assert record["verdict"]["phase"] == "not decidable"


BAD = [
    (["user_network"], "expected MODULE:FUNCTION"),
    (["user_network:"], "expected MODULE:FUNCTION"),
    (["absent_module:good"], "no module 'absent_module'"),
    (["absent.py:good"], "absent.py: no such file"),
    (["user_network:absent"], "no function 'absent'"),
    (["user_network:value"], "no function 'value'"),
    (["syntax.py:f"], "SyntaxError"),
    (["needs.py:f"], "no_such_library"),
    (["stops.py:f"], "SystemExit"),
    (["user_network:raises"], "raised KeyError: 'missing'"),
    (["user_network:leaves"], "raised SystemExit: bye"),
    (["user_network:single"], "returned function, expected the tuple"),
    (["user_network:two"], "a tuple of 2"),
    (["user_network:lists"], "x of type list"),
    (["user_network:text"], "x has dtype <U1"),
    (["user_network:integers"], "x has dtype int64"),
    (["user_network:nan"], "params['w'] has NaN"),
    (["user_network:whole"], "params['w'] is int64"),
    (["user_network:shapes"], "f(params, x) raised TypeError"),
    (["user_network:several"], "must return one array of floats"),
    (["user_network:scalar"], "put the batch first"),
    (["user_network:broken"], "f(params, x) raised KeyError"),
    (["user_network:infinite"], "NaN or infinite values for 9 of 9 inputs"),
    (["user_network:zero"], "the tangent kernel is zero"),
    (["user_network:number"], "f of type int"),
    (["user_network:one"], "at least 2"),
    (["user_network:badx"], "x has NaN or infinite values in 9 of 9"),
    (["user_network:good", "--count", "1"], "at least 2"),
    (["user_network:good", "--count", "10"], "got 10 of 9"),
    (["user_network:good", "--memory", "much"], "memory='much'"),
    (["user_network:good", "--memory", "16B"], "more memory"),
    (["user_network:good", "--out", "d.txt"], ".json"),
    ([], "MODULE:FUNCTION"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_errors_are_one_line_and_status_2(run, user, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(user.glob("*.json"))


def test_help_needs_no_jax(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "MODULE:FUNCTION" in out


def test_sys_path_is_left_as_it_was(user, monkeypatch):
    monkeypatch.chdir(user)
    before = list(sys.path)
    load_network(f"{Path('user_network.py')}:good")
    assert sys.path == before
