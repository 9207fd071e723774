"""What is no file of images or no kernel, or does not fit, is refused in one line before it is read or unpacked."""

import gzip
import io
import os
import socket
import struct
import sys
import zipfile

import numpy as np
import pytest

import ntk_analysis as ntk
from ntk_analysis import cli, data
from ntk_analysis.data import DataError
from ntk_analysis.layers import Dense, Serial

GB = 10**9
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")


def refused(read, *arguments):
    with pytest.raises(DataError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def available(monkeypatch):
    """Sets how many bytes of memory there are."""

    def limit(count):
        for place in ("files", "preprocessing"):
            monkeypatch.setattr(f"ntk_analysis.data.{place}.host_bytes", lambda: count)

    return limit


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)  # a full path may be too long for a socket


READERS = (data.read_images, data.read_idx)


@LINUX
@pytest.mark.parametrize("make", [pipe, unix_socket])
def test_what_is_no_file(make, tmp_path, monkeypatch):
    """A pipe would be waited for without end."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "images")
    word = {pipe: "a pipe", unix_socket: "a socket"}[make]
    for read in READERS:
        assert f"images: cannot be read, it is {word}; give a file" in refused(read, "images")
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "images", tmp_path / "folder" / "train-images-idx3-ubyte")
    assert "files of no known data set" in refused(data.read_images, "folder")


@LINUX
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_devices(path):
    for read in READERS:
        assert f"{path}: cannot be read, it is a" in refused(read, path)


def test_a_folder_is_no_file_and_links_are_followed(tmp_path):
    assert "it is a folder" in refused(data.read_idx, tmp_path)
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    os.symlink("a.npy", tmp_path / "link")
    assert data.read_images(tmp_path / "link").images.shape == (2, 1, 3, 1)
    os.symlink("nothing", tmp_path / "broken")
    assert "No such file" in refused(data.read_images, tmp_path / "broken")


@LINUX
def test_a_pipe_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("images.npz")
    for words in ("kernel images.npz --out k.npz", "empirical --images images.npz --store k"):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", *words.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("error: images.npz: cannot be read, it is a pipe")
        assert err.count("\n") == 1


# ---- headers that promise more than there is, and files that unpack to more than there is room for


def header(shape, dtype="|u1"):
    """The first bytes of a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(path, content, size=None, name="images.npy"):
    """A .npz file with this content under the name; with `size`, its zip headers lie about it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        if size is not None:
            archive.infolist()[0].file_size = size


@pytest.mark.parametrize("shape", [(6_900_000, 1000), (2**40, 2**40), (2**62, 4), (3, 5, 2)])
def test_headers_of_numpy_that_promise_too_much(shape, tmp_path):
    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(20))
    assert "bytes are missing of the (" in refused(data.read_images, tmp_path / "a.npy")
    zipped(tmp_path / "a.npz", header(shape) + bytes(20))
    assert "bytes are missing of the (" in refused(data.read_images, tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 4, (6_900_000, 100, 10)])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_headers_of_idx_that_promise_too_much(shape, packed, tmp_path, available):
    available(GB)
    content = b"\0\0\x08" + struct.pack(f">B{len(shape)}I", len(shape), *shape) + bytes(20)
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    assert "its arrays are" in refused(data.read_images, tmp_path / "a")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """6.9 GB of zeros in 7 MB, by the zip header alone: nothing is read."""
    zipped(tmp_path / "a.npz", header((6_900_000, 1000)) + bytes(2**20), size=69 * GB // 10)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # would raise another error
    told = refused(data.read_images, tmp_path / "a.npz")
    assert "images unpacks from" in told
    assert "to 6.43 GiB, as no images do; if it is meant, save it by numpy.savez" in told


def test_no_more_is_unpacked_than_is_announced(tmp_path, available):
    """Of a gzip file, whose header does not say what it unpacks to; and of labels."""
    content = b"\0\0\x08" + struct.pack(">B2I", 2, 2, 3) + bytes(2**24)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    available(2**20)
    assert "followed by foreign bytes" in refused(data.read_images, tmp_path / "a.gz")
    np.savez_compressed(tmp_path / "a.npz", images=np.ones((2, 3)), labels=np.zeros(2**20, np.int64))
    assert "its arrays are 0.00781 GiB" in refused(data.read_images, tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_what_does_not_fit_is_told_before_it_is_read(save, tmp_path, available):
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, np.ones((1000, 100)))
    available(2 * 8 * 10**5)
    assert data.read_images(path).images.size == 10**5
    available(2 * 8 * 10**5 - 1)
    told = refused(data.read_images, path)
    assert "its arrays are 0.000745 GiB, to read them takes about 0.00149 GiB, 0.00149 GiB are available" in told


def test_inputs_that_do_not_fit(available):
    images = np.ones((10, 4, 5, 1), np.uint8)
    available(9 * 200)
    assert data.preprocess(images).shape == (10, 20)
    available(9 * 200 - 1)
    with pytest.raises(MemoryError, match=r"\(10, 4, 5, 1\) images as float64 inputs take .* are available; use fewer"):
        data.preprocess(images)


# ---- labels


@pytest.mark.parametrize("largest", [10**5, 199_000_000, 2**63 + 5], ids=str)
def test_labels_that_are_no_class_numbers(largest, tmp_path):
    """A network has an output for each class below the largest."""
    labels = np.array([0, largest], np.uint64)
    np.savez(tmp_path / "a.npz", images=np.ones((2, 3)), labels=labels)
    told = refused(data.read_images, tmp_path / "a.npz")
    assert f"labels: label {largest}; expected class numbers from 0 to 99,999, which numpy.unique" in told
    if largest < 2**63:
        args = (np.ones((2, 1, 3, 1)), labels.astype(np.int64), "mine", largest + 1)
        assert f"{largest + 1} classes; give at most 100,000" in refused(data.ImageSet, *args)
    np.savez(tmp_path / "a.npz", images=np.ones((2, 3)), labels=np.array([0, 99_999]))
    assert data.read_images(tmp_path / "a.npz").num_classes == 100_000


# ---- a saved kernel, and the data of a figure: the same rules


def test_a_kernel_is_not_unpacked_before_it_is_known_to_fit(tmp_path, monkeypatch):
    """6.9 GB of zeros by their headers, which no content stands behind."""
    path = tmp_path / "k.npz"
    content = header((6_900_000, 1000))
    zipped(path, content + bytes(2**20), size=len(content) + 69 * GB // 10, name="distance.npy")
    monkeypatch.setattr("ntk_analysis.common.numpy_files.host_bytes", lambda: GB)
    monkeypatch.setattr(np.lib.format, "read_array", None)  # would raise another error
    for read in (ntk.open_kernel, ntk.Kernel.load):
        with pytest.raises(MemoryError, match=r"k\.npz are 6\.43 GiB, 0\.931 GiB are available: get more memory$"):
            read(path)


@pytest.mark.parametrize("shape", [(6_900_000, 1000), (2**40, 2**40), (3, 5, 2)])
def test_headers_of_a_kernel_that_promise_too_much(shape, tmp_path):
    zipped(tmp_path / "k.npz", header(shape) + bytes(20), name="distance.npy")
    with pytest.raises(ValueError, match=r"k\.npz cannot be read as a kernel \(bytes are missing of the \("):
        ntk.open_kernel(tmp_path / "k.npz")


@LINUX
def test_a_pipe_is_no_kernel(tmp_path):
    os.mkfifo(tmp_path / "k.npz")
    with pytest.raises(ValueError, match=r"it is no \.npz file"):
        ntk.Kernel.load(tmp_path / "k.npz")
    with pytest.raises(FileNotFoundError):
        ntk.Kernel.load(tmp_path / "nothing.npz")


def test_what_no_kernel_has_is_not_read(tmp_path, monkeypatch):
    """What stands beside a kernel's arrays takes no memory; a kernel that just fits is read."""
    kernel = ntk.infinite_kernel(Serial(Dense(1)), np.eye(3))
    arrays = kernel.arrays()
    np.savez(tmp_path / "k.npz", other=np.zeros(10**5), **arrays)
    room = sum(array.nbytes for array in arrays.values())
    monkeypatch.setattr("ntk_analysis.common.numpy_files.host_bytes", lambda: room)
    np.testing.assert_array_equal(ntk.open_kernel(tmp_path / "k.npz").ntk, kernel.ntk)
    monkeypatch.setattr("ntk_analysis.common.numpy_files.host_bytes", lambda: room - 1)
    with pytest.raises(MemoryError):
        ntk.open_kernel(tmp_path / "k.npz")
