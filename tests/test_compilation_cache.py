"""Compiled programs on disk: used by the next process, private, bounded, and never a reason for an error."""

import json
import os
import subprocess
import sys

import jax
import pytest

from ntk_analysis import compilation_cache
from ntk_analysis.compilation_cache import DIGESTS, VARIABLE

COUNT_HITS = """
import sys
import jax
from ntk_analysis import compilation_cache

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
used = compilation_cache.use(sys.argv[1])
value = jax.jit(lambda x: 3 * x + 1)(2.0)
print(bool(used), len(hits) > 0, float(value))
"""


def start(folder, code=COUNT_HITS, **environment):
    """What a new process prints, in words; nothing may stand on its stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {VARIABLE: str(folder), "PYTHONWARNINGS": "default"} | environment,
    )
    assert ended.stderr == ""
    return ended.stdout.split()


def programs(folder):
    return [path for path in folder.rglob("programs/*") if path.name != DIGESTS]


def test_the_next_process_uses_them(tmp_path):
    assert start(tmp_path / "cache") == ["True", "False", "7.0"]
    (private,) = (tmp_path / "cache").iterdir()
    assert private.stat().st_mode & 0o077 == 0
    assert start(tmp_path / "cache") == ["True", "True", "7.0"]


@pytest.mark.full
@pytest.mark.parametrize("damage", [b"", b"no program", None])
def test_a_damaged_program_is_compiled_again(tmp_path, damage):
    start(tmp_path)
    for path in programs(tmp_path):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert start(tmp_path) == ["True", "False", "7.0"]
    assert start(tmp_path) == ["True", "True", "7.0"]


@pytest.mark.full
def test_processes_that_were_killed_leave_no_trace_in_results(tmp_path):
    """Their programs have no digest; a damaged list of digests is no list."""
    killed = COUNT_HITS + "import os; sys.stdout.flush(); os._exit(0)"
    assert start(tmp_path, killed) == ["True", "False", "7.0"]
    assert programs(tmp_path)
    assert start(tmp_path) == ["True", "False", "7.0"]
    (listed,) = tmp_path.rglob(DIGESTS)
    listed.write_text("[1, 2")
    assert start(tmp_path) == ["True", "False", "7.0"]


@pytest.mark.full
def test_a_folder_that_cannot_be_used_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert start(tmp_path / "file") == ["False", "False", "7.0"]
    assert (tmp_path / "file").read_text() == "no folder"
    start(tmp_path / "open")
    (private,) = (tmp_path / "open").iterdir()
    private.chmod(0o755)  # others could read it, and once they could write they could run code here
    assert start(tmp_path / "open") == ["False", "False", "7.0"]


@pytest.mark.full
def test_commands_say_the_same_the_second_time(tmp_path):
    command = "import sys; from ntk_analysis import cli; sys.argv[1:] = ['meanfield']; cli.main()"
    assert start(tmp_path, command) == start(tmp_path, command)
    assert programs(tmp_path)
    assert start("off", command)


def test_off_and_the_users_own_cache(tmp_path):
    assert compilation_cache.use() is None  # the tests' environment has it off
    assert compilation_cache.use("off") is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    try:
        assert compilation_cache.use(tmp_path / "ours") is None
        assert not (tmp_path / "ours").exists()
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_only_whole_entries_stay(tmp_path):
    for name in ("whole", "changed", "unlisted"):
        (tmp_path / name).write_text(name)
    compilation_cache._write_digests(tmp_path)
    (tmp_path / "changed").write_text("other")
    listed = json.loads((tmp_path / DIGESTS).read_text())
    del listed["unlisted"]
    (tmp_path / DIGESTS).write_text(json.dumps(listed))
    compilation_cache._keep_whole_entries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DIGESTS, "whole"]


def test_the_oldest_go_beyond_the_bound(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "LARGEST", 25)
    for age, name in enumerate(["new", "old", "oldest"]):
        (tmp_path / f"folder {age}").mkdir()
        path = tmp_path / f"folder {age}" / name
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - age))
    compilation_cache._keep_newest(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["new", "old"]
