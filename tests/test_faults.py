"""Every fault of tests/faults.py, done to every command there, with its number of trials.

Signals come at 2 random times here; `uv run python tests/faults.py` takes 20 of each. Flipped bits and full disks are
`slow`: test_training_damage.py has them within one process.
"""

import signal

import faults
import pytest

TRIALS = 2


@pytest.fixture(params=faults.COMMANDS)
def command(request):
    return faults.COMMANDS[request.param]


def count(trials):
    """Does all of them, and says how many they were."""
    number = sum(1 for _ in trials)
    print(f"{number} trials")
    return number


@pytest.mark.full
def test_killed_at_random_times(command, tmp_path):
    assert count(faults.signals(command, signal.SIGKILL, tmp_path, TRIALS)) == TRIALS


@pytest.mark.full
def test_interrupted_at_random_times(command, tmp_path):
    assert count(faults.signals(command, signal.SIGINT, tmp_path, TRIALS)) == TRIALS


@pytest.mark.slow
def test_one_bit_of_every_file(command, tmp_path):
    assert count(faults.flips(command, tmp_path)) >= 2 * faults.FLIPS


@pytest.mark.full
def test_two_at_once(command, tmp_path):
    assert count(faults.two_at_once(command, tmp_path)) == 1


@pytest.mark.slow
def test_a_full_disk(command, tmp_path):
    if not count(faults.full_disk(command, tmp_path)):
        pytest.skip("this system lets no user mount a file system")


def test_a_traceback_is_no_message():
    """What the checks above are worth: they fail where they should."""
    faults.check_lines("warning: one\nerror: two\n")
    for err in ("Traceback (most recent call last):\n", "error: one\nerror: two\n", "error: one\n  more\n"):
        with pytest.raises(AssertionError):
            faults.check_lines(err)
