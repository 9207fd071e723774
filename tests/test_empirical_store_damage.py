"""Damaged stores of kernels: never other numbers, but one line that names the file, and the same bits when resumed."""

import shutil
import warnings

import numpy as np
import pytest

from ntk_analysis import spectrum
from ntk_analysis.empirical import EmpiricalKernel, empirical_ntk, open_kernel

from .damages import DAMAGES, flip, truncated
from .test_empirical_store import PARAMS, SMALL, X, interrupted, net
from .tiers import full

INPUTS = X[:5]  # 3 x 3 tiles, of which 6 are computed; the last row and column are padded
CHUNK = "kernel/c/0/1"
FILES = {"a chunk": CHUNK, "a mark": "done/0-1", "the header": "kernel/zarr.json", "the manifest": "manifest.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished store, which tests copy, and its kernel."""
    path = tmp_path_factory.mktemp("finished") / "k"
    return path, empirical_ntk(net, PARAMS, INPUTS, store=path, **SMALL).ntk


@pytest.fixture
def path(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "k")


def files(store):
    found = sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())
    return [name for name in found if name != ".lock"]


def resumed(path):
    return empirical_ntk(net, PARAMS, INPUTS, store=path, **SMALL).ntk


def stored(path, **options):
    found = open_kernel(path, **options)
    assert isinstance(found, EmpiricalKernel)
    return found


def refusal(path, **options):
    """The one line by which a damaged store is refused."""
    with pytest.raises((ValueError, OSError)) as caught:
        np.asarray(stored(path, **options).values)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_told_and_names_it(damage, finished, path, tmp_path):
    """Where the store is opened; and where it is read, of all that numbers depend on."""
    assert len(files(path)) == 9 + 6 + 2
    for name in files(path):
        copy = shutil.copytree(path, tmp_path / "copy")
        DAMAGES[damage](copy / name)
        if (damage, name) == ("lengthened", "manifest.json"):  # by a line break, which JSON allows
            np.testing.assert_array_equal(open_kernel(copy).ntk, finished[1])
            break
        told = refusal(copy)
        if name.startswith("done/") and damage == "missing":
            assert "1 of 6 tiles of store" in told
        else:
            assert name in told
        assert "repeat the call that began it" in told or "take it from a copy" in told
        if not name.startswith("done/"):
            told = refusal(copy, check=False)
            assert name in told or "has other checksums than the data of its tile" in told
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("middle bit", "a chunk"),
        ("missing", "a chunk"),
        ("truncated", "a chunk"),
        ("last bit", "a mark"),
        ("middle bit", "the header"),
        *full(*((damage, name) for damage in DAMAGES for name in ("a chunk", "a mark", "the header"))),
    ],
    ids=lambda part: part.replace(" ", "-"),
)
def test_what_is_damaged_is_told_in_one_line_and_computed_again(damage, name, finished, path):
    before = {name: (path / name).stat().st_mtime_ns for name in files(path)}
    DAMAGES[damage](path / FILES[name])
    if (damage, name) == ("missing", "a mark"):
        told = None
    elif name == "the header":
        told = r"k is damaged \(kernel/zarr\.json .*\): it is written again$"
    else:
        told = rf"k is damaged \({FILES[name]} [^;]*\): 1 of 6 tiles are computed again$"
    with warnings.catch_warnings() if told is None else pytest.warns(UserWarning, match=told) as warned:
        found = resumed(path)
    assert told is None or len(warned) == 1
    np.testing.assert_array_equal(found, finished[1])
    again = {"kernel/c/0/1", "kernel/c/1/0", "done/0-1"} if name != "the header" else {FILES[name]}
    assert {name for name in before if (path / name).stat().st_mtime_ns != before[name]} == again
    np.testing.assert_array_equal(open_kernel(path).ntk, finished[1])


def test_a_damaged_manifest_is_refused_and_nothing_is_changed(path):
    flip(path / "manifest.json")
    before = {name: (path / name).read_bytes() for name in files(path)}
    with pytest.raises(ValueError, match=r"k: manifest\.json is missing, damaged, .*: take it from a copy, or give an"):
        resumed(path)
    assert {name: (path / name).read_bytes() for name in files(path)} == before


def test_many_damages_are_one_line(finished, path):
    """Chunks of one size that changed places, too: their own checksums are right."""
    chunks = [path / "kernel" / "c" / name for name in ("0/1", "0/2")]
    contents = [chunk.read_bytes() for chunk in chunks]
    for chunk, content in zip(chunks, contents[::-1], strict=True):
        chunk.write_bytes(content)
    truncated(path / "kernel/c/1/1")
    (path / "kernel/c/2/2").unlink()
    assert "; and 1 more" in refusal(path)
    with pytest.warns(UserWarning, match=r"and 1 more\): 4 of 6 tiles are computed again$") as warned:
        np.testing.assert_array_equal(resumed(path), finished[1])
    assert len(warned) == 1


def test_folders_that_are_missing(finished, path):
    for name, told in (("kernel/c", "kernel/c/0/0 is missing"), ("done", "6 of 6 tiles"), ("kernel", "zarr.json is m")):
        shutil.rmtree(path / name)
        if name == "kernel":
            (path / name).mkdir()
        assert told in refusal(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(resumed(path), finished[1])


def test_an_unfinished_store_is_checked_too(tmp_path):
    interrupted(tmp_path / "k")
    flip(tmp_path / "k" / CHUNK)
    seen = []

    def track(steps, description):
        seen.extend(steps)
        return steps

    with pytest.warns(UserWarning, match=r"kernel/c/0/1 has other bytes than were written\): 1 of 21 tiles are"):
        found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=track, **SMALL)
    assert len(seen) == 21 - 5 + 1
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, X, **SMALL).ntk)


def test_damage_after_opening(path):
    """A store is read where it is indexed: a chunk that is damaged meanwhile is never numbers."""
    values = stored(path).values
    flip(path / CHUNK)
    assert np.isfinite(values[2:, 2:]).all()
    for index in ((0, 2), (slice(None), 2)):
        with pytest.raises(ValueError, match="kernel/c/0/1 has other bytes than were written"):
            values[index]
    (path / CHUNK).unlink()
    with pytest.raises(ValueError, match="kernel/c/0/1 is missing"):
        values[0, 2]
    with pytest.raises(ValueError, match="kernel/c/0/1 is missing"):
        spectrum.condition_number(path)
    with pytest.raises(IndexError):
        values[7]


@pytest.mark.full
def test_a_flipped_byte_anywhere(finished, path):
    """At a hundred places of every file: the kernel is refused, or its numbers are right."""
    trials, refused = 0, 0
    for name in files(path):
        content = (path / name).read_bytes()
        step = max(1, len(content) // 100)
        for place in range(0, len(content), step):
            flip(path / name, place)
            told = ""
            try:
                np.testing.assert_array_equal(open_kernel(path).ntk, finished[1])
            except ValueError as error:
                told = str(error)
            assert not told or ("\n" not in told and name in told)
            trials, refused = trials + 1, refused + bool(told)
            (path / name).write_bytes(content)
    np.testing.assert_array_equal(open_kernel(path).ntk, finished[1])
    print(f"{trials} trials: {refused} refused")
    assert refused > 0.95 * trials
