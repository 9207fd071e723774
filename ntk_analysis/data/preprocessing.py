"""Images become inputs: the mean image is subtracted if wished, then |x|^2/d is scaled to variance q = 1."""

from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Float64, Real

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.memory import gib, host_bytes
from ntk_analysis.data.files import DataError
from ntk_analysis.data.images import check_finite, describe_rows

ImageCentering: TypeAlias = Literal["none", "dataset"]
"""What is subtracted from images before they are scaled: nothing, or the mean of the images given."""


def preprocess(
    images: Real[np.ndarray, "n h w c"], *, image_centering: ImageCentering = "none"
) -> Float64[np.ndarray, "n h*w*c"]:
    """Inputs x of the theory: each image flattened to d = H*W*C numbers and scaled to |x|^2 = d.

    The scale of the pixels drops out, so raw grey levels need no division by 255 first. With a mean image, the result
    depends on which images are given: choose a subset before, not after.

    Args:
        images: images (N, H, W, C), of any real dtype.
        image_centering: "none" subtracts nothing, "dataset" the mean image (per pixel, over the N images given).

    Returns:
        Inputs float64 (N, d), dimensionless, with rows of |x|^2 = d, which is variance q = |x|^2/d = 1.

    Raises:
        ValueError: `image_centering` is unknown, or the images are no array of real numbers.
        DataError: there are no images, pixels are NaN or infinite, or rows are zero and have no direction to scale:
            black images, or with "dataset" images equal to the mean image (one image alone, or N copies of one).
        MemoryError: the inputs do not fit into memory.
    """
    if image_centering not in get_args(ImageCentering):
        raise ValueError(f"image_centering={image_centering!r} is unknown; use 'none' or 'dataset'")
    images = concrete(images, "images")
    if images.size == 0 or images.ndim < 2:
        raise DataError(f"preprocess: images of shape {images.shape}; give at least one image with at least one pixel")
    needed = images.size * (np.dtype(np.float64).itemsize + 1)  # the inputs, and which pixels are finite
    if needed > (free := host_bytes()):
        raise MemoryError(
            f"preprocess: {images.shape} images as float64 inputs take {gib(needed)}, {gib(free)} are available; use "
            "fewer images"
        )
    check_finite("preprocess", images)
    x = images.reshape(len(images), -1).astype(np.float64)
    x /= max(x.max(), -x.min()) or 1.0  # so that no square below overflows or underflows
    noise = 0.0
    if image_centering == "dataset":
        # the mean of N floats is off by up to N roundings: what is left of an image equal to it is noise, not zero
        noise = len(x) * float(np.finfo(np.float64).eps) * norms(x).max()
        x -= x.mean(axis=0)
    norm = norms(x)
    refuse_zero_rows(np.flatnonzero(norm <= noise), image_centering)
    x *= (np.sqrt(x.shape[1]) / norm)[:, None]
    return x


def mean_correlation(x: Float[np.ndarray, "n d"]) -> float:
    """Mean off-diagonal entry of x x^T / d: the average correlation of two different inputs.

    Args:
        x: rows (N, d) with |x|^2 = d, as `preprocess` returns them.

    Returns:
        A number in [-1/(N-1), 1]; -1/(N-1) when the rows sum to zero.

    Raises:
        ValueError: there are fewer than two rows.
    """
    count, d = x.shape
    if count < 2:
        raise ValueError(f"mean_correlation: {count} rows; a correlation needs at least 2")
    # sum_{i != j} x_i.x_j = |sum_i x_i|^2 - sum_i |x_i|^2 needs no N x N matrix
    total = x.sum(axis=0, dtype=np.float64)
    squares = np.einsum("nd,nd->", x, x, dtype=np.float64)
    return float((total @ total - squares) / (d * count * (count - 1)))


def norms(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """Euclidean norm of each row, without a second array of the size of x."""
    lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", x, x))
    return lengths


def refuse_zero_rows(rows: np.ndarray, image_centering: ImageCentering) -> None:
    """Raise DataError when there are rows that cannot be scaled, saying why they are zero."""
    if rows.size and image_centering == "dataset":
        raise DataError(
            f"preprocess: {describe_rows(rows)} equal the mean image, zero cannot be scaled to |x|^2 = d; "
            "drop them, use image_centering='none', or give different images"
        )
    if rows.size:
        raise DataError(
            f"preprocess: {describe_rows(rows)} are all zero and cannot be scaled to |x|^2 = d; drop these images"
        )
