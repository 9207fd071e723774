"""Every fault of tests/faults.py, done to every command there, with its number of trials."""

import signal

import faults
import pytest

pytestmark = pytest.mark.full  # real processes, killed


@pytest.fixture(params=faults.COMMANDS)
def command(request):
    return faults.COMMANDS[request.param]


def count(trials):
    """Does all of them, and says how many they were."""
    number = sum(1 for _ in trials)
    print(f"{number} trials")
    return number


def test_killed_at_random_times(command, tmp_path):
    assert count(faults.signals(command, signal.SIGKILL, tmp_path)) == faults.SIGNALS


@pytest.mark.xfail(reason="Ctrl-C is lost in callbacks of the garbage collector, and told as a traceback", strict=False)
def test_interrupted_at_random_times(command, tmp_path):
    assert count(faults.signals(command, signal.SIGINT, tmp_path)) == faults.SIGNALS


def test_one_bit_of_every_file(command, tmp_path):
    assert count(faults.flips(command, tmp_path)) >= 2 * faults.FLIPS


def test_two_at_once(command, tmp_path):
    assert count(faults.two_at_once(command, tmp_path)) == 1


def test_a_full_disk(command, tmp_path):
    if not count(faults.full_disk(command, tmp_path)):
        pytest.skip("this system lets no user mount a file system")


def test_a_traceback_is_no_message():
    """What the checks above are worth: they fail where they should."""
    faults.check_lines("warning: one\nerror: two\n")
    for err in ("Traceback (most recent call last):\n", "error: one\nerror: two\n", "error: one\n  more\n"):
        with pytest.raises(AssertionError):
            faults.check_lines(err)
