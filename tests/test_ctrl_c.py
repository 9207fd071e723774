"""Ctrl-C ends a command within two seconds and a little, in one line and with status 130, whatever it is doing."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

# Ctrl-C as in a terminal, whatever it means to these tests
DEFAULT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.argv[1], sys.argv[1:])
"""
LOST = """
import sys, time
from ntk_analysis.cli import ctrl_c_ends
ctrl_c_ends.listen()
class Slow:
    def __del__(self):  # Python loses what is raised here
        print("in it", flush=True)
        time.sleep(60)
slow = Slow()
del slow
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(7)
"""
REPLACED = """
import time
from ntk_analysis import cli
from ntk_analysis.cli import app
def command(*_, **options):  # as an extension in C that is interrupted while it reads an argument
    print("in it", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    raise ValueError("Invalid affine transformation matrix")
app.app = command
cli.start()
"""
HELD = """
import signal, time
from ntk_analysis.cli import ctrl_c_ends
ctrl_c_ends.listen()
signal.signal(signal.SIGINT, lambda *_: None)  # as if Python never came to raise what it should
print("in it", flush=True)
while True:
    time.sleep(60)
"""


def interrupted(*command, begun=None, after=0.0, **options):
    """Sends SIGINT when the process has printed `begun`, and some seconds later: status, stderr, seconds it took."""
    whole = [sys.executable, "-c", DEFAULT, sys.executable, *command]
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if begun:
        assert process.stdout is not None
        assert process.stdout.readline() == begun
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    return process.returncode, err, time.monotonic() - start


def test_an_exception_that_is_lost_is_raised_again():
    status, err, _ = interrupted("-c", LOST, begun="in it\n", after=0.2)
    assert (status, err) == (7, "")


def test_an_error_in_place_of_the_exception_is_an_interruption():
    status, err, _ = interrupted("-c", REPLACED, begun="in it\n", after=0.2)
    assert (status, err) == (130, "interrupted: nothing half-written\n")


def test_a_process_that_does_not_come_back_is_left():
    status, err, _ = interrupted("-c", HELD, begun="in it\n", after=0.2)
    assert status == 130
    assert err == "interrupted: left in the middle of a computation; no file is half-written\n"


@pytest.mark.full
@pytest.mark.parametrize("after", [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 6.0], ids="{}s".format)
def test_a_long_command(tmp_path, after):
    """4,000 inputs of 100 numbers each through 300 layers of tanh: imports, the fit, compilation, tiles."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4000, 100)))
    command = ["-m", "ntk_analysis", "kernel", "x.npy", "--raw", "--activation=tanh", "--depth=300", "--out=k.npz"]
    status, err, seconds = interrupted(*command, after=after, cwd=tmp_path)
    assert status == 130
    assert err.startswith("interrupted: ")
    assert err.count("\n") == 1
    assert seconds < 10  # two and a little; a loaded machine takes longer
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
