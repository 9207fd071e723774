"""Faults of tests/faults.py, done to commands there, with their numbers of trials.

In the tier `full` each signal comes once, to one command, which takes a minute; the other commands are `slow`,
and `uv run python tests/faults.py` takes 20 of each signal. Damaged files and full disks are `slow`:
test_training_damage.py and test_empirical_store_damage.py have them within one process.
"""

import signal

import pytest

from . import faults

TRIALS = 1


def commands(*shown):
    """Each command as the argument `command`: these in the tier `full`, the others by hand."""
    cases = [
        pytest.param(command, id=name, marks=pytest.mark.full if name in shown else pytest.mark.slow)
        for name, command in faults.COMMANDS.items()
    ]
    return pytest.mark.parametrize("command", cases)


def count(trials):
    """Does all of them, and says how many they were."""
    number = sum(1 for _ in trials)
    print(f"{number} trials")
    return number


@commands("empirical")
def test_killed_at_random_times(command, tmp_path):
    assert count(faults.signals(command, signal.SIGKILL, tmp_path, TRIALS)) == TRIALS


@commands("sweep")
def test_interrupted_at_random_times(command, tmp_path):
    assert count(faults.signals(command, signal.SIGINT, tmp_path, TRIALS)) == TRIALS


@commands()
def test_one_bit_of_every_file(command, tmp_path):
    assert count(faults.flips(command, tmp_path)) >= 2 * faults.FLIPS


@commands()
def test_two_at_once(command, tmp_path):
    assert count(faults.two_at_once(command, tmp_path)) == 1


@commands()
def test_a_full_disk(command, tmp_path):
    if not count(faults.full_disk(command, tmp_path)):
        pytest.skip("this system lets no user mount a file system")


def test_a_traceback_is_no_message():
    """What the checks above are worth: they fail where they should."""
    faults.check_lines("warning: one\nerror: two\n")
    for err in ("Traceback (most recent call last):\n", "error: one\nerror: two\n", "error: one\n  more\n"):
        with pytest.raises(AssertionError):
            faults.check_lines(err)
