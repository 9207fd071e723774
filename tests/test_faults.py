"""Faults of tests/faults.py, done to its commands, with their numbers of trials.

The tier `full` has both signals at twenty random times each for every command, in forks of a process that has imported
their modules. In the tier `slow` they are processes of their own, and the other faults are there: of these,
test_training_damage.py and test_empirical_store_damage.py have within one process what `full` and default need. Both
print how many trials they were:

    uv run pytest -m slow -rP tests/test_faults.py
"""

from collections import Counter

import pytest

from . import faults

every_command = pytest.mark.parametrize("name", faults.COMMANDS)


def counted(trials):
    """Does all of them, and says how many they were."""
    counts = Counter(trials)
    print(", ".join(f"{count} trials of {fault}" for fault, count in sorted(counts.items())) or "no trial")
    return counts


def each_signal(times):
    return {number.name: times for number in faults.SIGNALS}


@pytest.mark.full
@every_command
def test_signals_at_random_times_to_forks(name, tmp_path):
    counts = counted(faults.signals(faults.COMMANDS[name], tmp_path, start=faults.Fork))
    assert counts == each_signal(faults.TIMES)


@pytest.mark.slow
@every_command
def test_signals_at_random_times(name, tmp_path):
    assert counted(faults.signals(faults.COMMANDS[name], tmp_path)) == each_signal(faults.TIMES)


@pytest.mark.slow
@every_command
def test_one_bit_of_every_file(name, tmp_path):
    assert counted(faults.flips(faults.COMMANDS[name], tmp_path))["flipped bit"] >= 2 * faults.FLIPS


@pytest.mark.slow
@every_command
def test_two_at_once(name, tmp_path):
    assert counted(faults.two_at_once(faults.COMMANDS[name], tmp_path)) == {"two at once": 1}


@pytest.mark.slow
@every_command
def test_a_full_disk(name, tmp_path):
    if not counted(faults.full_disk(faults.COMMANDS[name], tmp_path)):
        pytest.skip("this system lets no user mount a file system")


def test_a_traceback_is_no_message():
    """What the checks above are worth: they fail where they should."""
    faults.check_lines("warning: one\nerror: two\n")
    for err in ("Traceback (most recent call last):\n", "error: one\nerror: two\n", "error: one\n  more\n"):
        with pytest.raises(AssertionError):
            faults.check_lines(err)
