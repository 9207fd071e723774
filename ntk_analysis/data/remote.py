"""Data sets that are downloaded once, checked, and kept in a data home."""

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ntk_analysis.common.messages import one_line
from ntk_analysis.data.cifar import CIFAR10, CIFAR100, Distribution, read_cifar10, read_cifar100
from ntk_analysis.data.files import DataError, for_split
from ntk_analysis.data.idx import read_mnist
from ntk_analysis.data.images import ImageSet

DATA_HOME_VARIABLE = "NTK_ANALYSIS_DATA"


@dataclass(frozen=True)
class Remote:
    """The place from which a data set is downloaded.

    Attributes:
        folder: folder of the data set in the data home.
        url: base URL, ending in a slash.
        md5: MD5 checksum of each file by its name, as the publisher gives it.
    """

    folder: str
    url: str
    md5: Mapping[str, str]


REMOTES = {
    "MNIST": Remote(
        folder="mnist",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "Fashion-MNIST": Remote(
        folder="fashion-mnist",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "CIFAR-10": Remote(
        folder="cifar-10",
        url="https://www.cs.toronto.edu/~kriz/",
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "CIFAR-100": Remote(
        folder="cifar-100",
        url="https://www.cs.toronto.edu/~kriz/",
        md5={"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
}
"""The one table of addresses and checksums, by the name of the data set."""


def fetch_mnist(split: str = "train", data_home: str | Path | None = None) -> ImageSet:
    """MNIST, downloaded on the first call: 60,000 ("train") or 10,000 ("test") images, uint8 (N, 28, 28, 1).

    Args:
        split: part of the data set, "train" or "test"; only the files of this split are downloaded.
        data_home: folder for the files; else $NTK_ANALYSIS_DATA, else the platform's cache folder.

    Raises:
        ValueError: the split is unknown.
        DataError: the download failed, or the checksum is wrong; nothing unfinished is kept.
    """
    return fetch_idx("MNIST", split, data_home)


def fetch_fashion_mnist(split: str = "train", data_home: str | Path | None = None) -> ImageSet:
    """Fashion-MNIST, downloaded on the first call: sizes, arguments and errors as for `fetch_mnist`."""
    return fetch_idx("Fashion-MNIST", split, data_home)


def fetch_cifar10(split: str = "train", data_home: str | Path | None = None) -> ImageSet:
    """CIFAR-10, downloaded on the first call: 50,000 ("train") or 10,000 ("test") images, uint8 (N, 32, 32, 3).

    Args:
        split: part of the data set, "train" or "test"; one archive of 170 MB has both.
        data_home: folder for the files; else $NTK_ANALYSIS_DATA, else the platform's cache folder.

    Raises:
        ValueError: the split is unknown.
        DataError: the download failed, the checksum is wrong, or the archive lacks a file; nothing unfinished is kept.
    """
    return read_cifar10(fetch_archive(CIFAR10, split, data_home), split)


def fetch_cifar100(split: str = "train", data_home: str | Path | None = None) -> ImageSet:
    """CIFAR-100 with its fine labels, downloaded on the first call: sizes, arguments, errors as for `fetch_cifar10`."""
    return read_cifar100(fetch_archive(CIFAR100, split, data_home), split)


def fetch_idx(name: str, split: str, data_home: str | Path | None) -> ImageSet:
    """One split of a data set in MNIST's four files."""
    remote = REMOTES[name]
    prefix = for_split(split, train="train", test="t10k")
    folder = find_data_home(data_home) / remote.folder
    for file in remote.md5:
        if file.startswith(prefix):
            download(remote, file, folder)
    return read_mnist(folder, split, name)


def fetch_archive(distribution: Distribution, split: str, data_home: str | Path | None) -> Path:
    """The folder in the data home that holds the extracted folder of a CIFAR archive."""
    for_split(split, train=None, test=None)  # refuses a misspelt split before 170 MB are downloaded
    remote = REMOTES[distribution.name]
    folder = find_data_home(data_home) / remote.folder
    if not (folder / distribution.folder).is_dir():
        [file] = remote.md5
        extract(download(remote, file, folder), distribution)
    return folder


def find_data_home(data_home: str | Path | None) -> Path:
    """The folder of downloads: the argument, else $NTK_ANALYSIS_DATA, else the platform's cache folder."""
    import pooch  # lazily: it brings requests along, and most uses of this library download nothing

    return Path(data_home or os.environ.get(DATA_HOME_VARIABLE) or pooch.os_cache("ntk_analysis")).expanduser()


def download(remote: Remote, file: str, folder: Path) -> Path:
    """The path of a file of the data set, downloaded unless a copy with the right checksum is there.

    Pooch downloads beside the final name and renames only what has the right checksum.
    """
    import pooch

    url = remote.url + file
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{remote.md5[file]}", fname=file, path=folder))
    except (OSError, ValueError) as error:  # network, disk, checksum
        raise DataError(
            f"{url}: download failed, nothing was kept ({one_line(error)}); "
            f"try again, or put {file} into {folder} yourself"
        ) from error


def extract(archive: Path, distribution: Distribution) -> None:
    """Extract the files of a CIFAR archive, and nothing else of it, into its folder beside the archive.

    The folder appears under its name only when it is complete. Paths stored in the archive are never written to.
    """
    target = archive.parent / distribution.folder
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="extracting-") as scratch:
            unfinished = Path(scratch) / distribution.folder
            unfinished.mkdir()
            with tarfile.open(archive) as tar:
                for name in distribution.train + distribution.test:
                    copy_member(tar, f"{distribution.folder}/{name}", unfinished / name)
            unfinished.rename(target)
    except (KeyError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        if not target.is_dir():  # else another process has finished the same work first
            raise DataError(
                f"{archive}: extraction failed, nothing was kept ({one_line(error)}); delete the archive and try again"
            ) from error


def copy_member(tar: tarfile.TarFile, name: str, destination: Path) -> None:
    """Write one regular file of an archive to `destination`; KeyError when the archive has no such file."""
    member = tar.getmember(name)
    source = tar.extractfile(member) if member.isreg() else None  # a link may point anywhere
    if source is None:
        raise KeyError(f"{name} is not a regular file")
    with source, destination.open("wb") as written:
        shutil.copyfileobj(source, written)
