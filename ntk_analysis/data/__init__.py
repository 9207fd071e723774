"""Images to compute kernels of: `load_*` is shipped, `fetch_*` is downloaded once, `read_*` is a file of yours."""

from ntk_analysis.data.cifar import read_cifar10, read_cifar100
from ntk_analysis.data.files import DataError
from ntk_analysis.data.idx import read_idx, read_mnist
from ntk_analysis.data.images import ImageSet
from ntk_analysis.data.preprocessing import ImageCentering, mean_correlation, preprocess
from ntk_analysis.data.remote import (
    REMOTES,
    Remote,
    fetch_cifar10,
    fetch_cifar100,
    fetch_fashion_mnist,
    fetch_mnist,
)
from ntk_analysis.data.shipped import load_digits, load_mnist5k, mnist5k_available
from ntk_analysis.data.user import read_images

__all__ = [
    "REMOTES",
    "DataError",
    "ImageCentering",
    "ImageSet",
    "Remote",
    "fetch_cifar10",
    "fetch_cifar100",
    "fetch_fashion_mnist",
    "fetch_mnist",
    "load_digits",
    "load_mnist5k",
    "mean_correlation",
    "mnist5k_available",
    "preprocess",
    "read_cifar10",
    "read_cifar100",
    "read_idx",
    "read_images",
    "read_mnist",
]
