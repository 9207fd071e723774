"""One process at a time: a lock that ends with its process, however that ends."""

import errno
import signal
import subprocess
import sys

import pytest

from ntk_analysis.common import lock
from ntk_analysis.common.lock import locked


def test_the_second_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with (
        locked(folder),
        pytest.raises(BlockingIOError, match=r"another process writes to .*folder: wait until"),
        locked(folder),
    ):
        pass
    with locked(folder), locked(tmp_path / "other"):
        pass
    assert [path.name for path in folder.iterdir()] == [".lock"]


HOLDER = "import sys, time; from pathlib import Path; from ntk_analysis.common.lock import locked\n"
HOLDER += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.mark.full  # starts a process
def test_a_killed_process_holds_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path):
            pass


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_told(name, tmp_path, monkeypatch):
    def absent(handle):
        raise OSError(getattr(errno, name), "no locks")

    monkeypatch.setattr(lock, "_lock", absent)
    reached = False
    with (
        pytest.warns(UserWarning, match=r"is on a file system without locks \(no locks\): see to it that one"),
        locked(tmp_path),
    ):
        reached = True
    assert reached


def test_other_errors_are_errors(tmp_path, monkeypatch):
    def broken(handle):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(lock, "_lock", broken)
    with pytest.raises(OSError, match="input/output error"), locked(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file, expected a folder"), locked(tmp_path / "file"):
        pass
