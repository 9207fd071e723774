"""How alike two kernels are, and how well a kernel fits the targets: distance, change, alignment, centered alignment.

They take any kernel (`any_kernel.AnyKernel`): an infinite `Kernel`, an `EmpiricalKernel` in any layout, the path of a
saved one, an array (n1, n2) or (n1, n2, C, C) of networks with C outputs; all are compared entry by entry in float64.
Distance and alignments do not see the scale of a kernel, so that an NTK beyond float64 needs no care.

Centering takes away what the entries have in common, which may be all but their last digits. How many of those a kernel
has is judged by the dtype in which it arrived: see `centered_alignment`.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ntk_analysis.any_kernel import AnyKernel, Rows, entries, on_disk, opened, rows_of
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.matrices_by_rows import Projection, inner_products
from ntk_analysis.common.norms import norm
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.spectrum.matrix import entry_error, machine_eps

RESOLVED = 0.01  # error of a centered alignment above which it comes with a warning
ROUNDINGS = 2  # of the largest entry, by which entries count as off; a kernel that centering leaves little of has 1


class UnresolvedAlignmentWarning(UserWarning):
    """A centered alignment may be off by more than 0.01, for the rounding of its kernels; the message says how far."""


class Direction(NamedTuple):
    """A matrix of norm 1, and the largest angle in radians by which rounding may have turned it.

    Attributes:
        unit: matrix of Frobenius norm 1, float64.
        error: angle in [0, pi/2); cosines of angles between matrices are off by no more than the sum of both.
    """

    unit: np.ndarray
    error: float


def kernel_distance(kernel1: AnyKernel, kernel2: AnyKernel, *, which: str = "ntk") -> float:
    """1 - <K1, K2>_F / (|K1|_F |K2|_F), in [0, 2], and in [0, 1] for positive semi-definite kernels.

    As in Fort et al. 2020 (2010.15110): between the empirical NTKs of two times of training it says how much of
    the kernel the training has turned. Small distances keep their digits.

    Args:
        kernel1: (n1, n2) or (n1, n2, C, C).
        kernel2: any kernel of the same shape.
        which: the part of a `Kernel` or `EmpiricalKernel` to take.

    Raises:
        ValueError: shapes that differ, or a kernel that is zero; as `entries`.
    """
    first, second = _pair(kernel1, kernel2, which)
    # half the squared distance of unit vectors is 1 - cosine without its cancellation
    return float(np.sum((_unit(first) - _unit(second)) ** 2)) / 2


def relative_change(before: AnyKernel, after: AnyKernel, *, which: str = "ntk") -> float:
    """|after - before|_F / |before|_F: unlike the distance, it sees a change of scale.

    Raises:
        ValueError: `kernel_distance` raises it.
        OverflowError: the kernels' scales differ by more than float64 holds.
    """
    first, second = _pair(before, after, which)
    first, second = first.astype(np.float64), second.astype(np.float64)
    ratio = entries(after, which)[1] - entries(before, which)[1]
    size = np.max(np.abs(first))
    with np.errstate(over="ignore", invalid="ignore"):
        change = norm(second / size * np.exp(ratio) - first / size) / norm(first / size)
    if not np.isfinite(change):
        times = ratio + math.log(np.max(np.abs(second))) - math.log(size)
        raise OverflowError(f"after is exp({times:.1f}) times before, which float64 does not hold: compare directions")
    return change


def alignment(kernel1: AnyKernel, kernel2: AnyKernel, *, which: str = "ntk") -> float:
    """<K1, K2>_F / (|K1|_F |K2|_F), in [-1, 1], Cristianini et al. 2001. It raises what `kernel_distance` does."""
    kernel1, kernel2 = opened(kernel1), opened(kernel2)
    if on_disk(kernel1) or on_disk(kernel2):
        return _by_rows(rows_of(kernel1, which), rows_of(kernel2, which), "none")
    first, second = _pair(kernel1, kernel2, which)
    return _cosine(_unit(first), _unit(second))


def centered_alignment(kernel1: AnyKernel, kernel2: AnyKernel, *, unbiased: bool = False, which: str = "ntk") -> float:
    """Alignment of H K1 H and H K2 H with H = I - 11'/n, as in Cortes et al. 2012.

    Also known as CKA (Kornblith et al. 2019). Centering is over inputs, of each pair of outputs. It takes out the
    constant mode, which in a deep network without normalisation outweighs everything else and aligns any two kernels.

    It is above 0 for kernels that have nothing to do with each other, and the more so the more features and the fewer
    inputs they have: .93 for two times 100 independent features on 8 inputs, .76 on 32. With `unbiased` its three
    products are the unbiased estimates of Song et al. 2012 (JMLR 13, equation 5), as in Nguyen et al. 2021
    (2010.15327): 0 on average there, in [-1, 1]. It is the alignment of the kernels without their diagonals, projected
    onto matrices whose rows sum to 0 (Szekely & Rizzo 2014).

    A float32 kernel of nearly equal entries has no digits left once centered. Entries count as off by two roundings of
    the largest one, in the dtype in which the kernel arrived, and the alignment by what that can turn the centered
    kernels. What computing the kernel amplified further leaves no trace in it, and is not included.

    Args:
        kernel1: (n1, n2) or (n1, n2, C, C); with `unbiased` (n, n) of one set of inputs, n >= 4.
        kernel2: any kernel of the same shape.
        unbiased: take the unbiased estimates.
        which: the part of a `Kernel` or `EmpiricalKernel` to take.

    Raises:
        ValueError: `kernel_distance` raises it; or a kernel is zero once centered, up to rounding; or, with `unbiased`,
            it is not symmetric, or has fewer than 4 inputs or pairs of outputs.

    Warns:
        UnresolvedAlignmentWarning: rounding may have moved the result by more than 0.01.
    """
    kernel1, kernel2 = opened(kernel1), opened(kernel2)
    if on_disk(kernel1) or on_disk(kernel2):
        first_rows, second_rows = (_rows(kernel, which, unbiased) for kernel in (kernel1, kernel2))
        return _by_rows(first_rows, second_rows, "hollow" if unbiased else "centered")
    first, second = (
        _direction(kernel, _projection(kernel, unbiased), "a kernel") for kernel in _pair(kernel1, kernel2, which)
    )
    return _resolved_cosine(first, second)


def target_alignment(
    kernel: AnyKernel,
    targets: AnyArray,
    *,
    labels: bool | None = None,
    centered: bool = True,
    unbiased: bool = False,
    which: str = "ntk",
) -> float:
    """Alignment of a kernel with the targets' Y Y': 1 where the kernel knows the labels and nothing else.

    Args:
        kernel: (n, n); (n, n, C, C), which is aligned with the products Y[a, c] Y[b, d]; or (n, n, C), with d = c.
        targets: (n,) or (n, 1) integers, booleans or words are class labels, Y = one-hot - 1/classes; floats (n,) or
            (n, C) are Y itself. Two classes give half the y y' of labels -1 and 1, and so the same alignment.
        labels: whether the targets are class labels, also as floats; None tells by their dtype, and refuses whole
            numbers in floats that may be either: three values or more, each several times on average.
        centered: center both kernels over inputs (Cortes et al. 2012) or not (Cristianini et al. 2001).
        unbiased: whether the estimates are unbiased, see `centered_alignment`; only with `centered`.
        which: the part of a `Kernel` or `EmpiricalKernel` to take.

    Raises:
        ValueError: targets that do not fit the kernel; fewer than two classes, or targets that are all the same up to
            rounding; `unbiased` without `centered`; as `centered_alignment`.

    Warns:
        UnresolvedAlignmentWarning: `centered_alignment` warns.
    """
    if unbiased and not centered:
        raise ValueError(
            "unbiased=True with centered=False, expected one of them: only centering has a bias to take off"
        )
    kernel = opened(kernel)
    if on_disk(kernel):
        projection: Projection = "hollow" if unbiased else "centered" if centered else "none"
        return _with_targets_by_rows(_rows(kernel, which, unbiased), targets, labels, projection)
    values = entries(kernel, which)[0]
    if values.shape[0] != values.shape[1]:
        raise ValueError(f"kernel has shape {values.shape}, expected one set of inputs against itself")
    y = _targets(targets, len(values), labels)
    if values.ndim > 2 and y.shape[1] != values.shape[2]:
        raise ValueError(f"targets of {y.shape[1]} outputs against a kernel of {values.shape[2]}: expected as many")
    if not centered:
        return alignment(values, _products(y, values.ndim))
    # the targets are centered before they are squared, which leaves them twice the digits
    known = _direction(y, lambda given: given - given.mean(axis=0), "targets")
    project = _projection(values, unbiased)
    wanted = _direction(_products(known.unit, values.ndim), project, "targets")
    return _resolved_cosine(
        _direction(values, project, "a kernel"), wanted._replace(error=wanted.error + _off_by(known.error, y.shape[1]))
    )


def centered_one_hot(labels: np.ndarray) -> Float64[np.ndarray, "n classes"]:
    """One-hot targets minus 1/classes, so that each row sums to 0; columns are the sorted classes that occur.

    Raises:
        ValueError: fewer than two classes.
    """
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels have {len(classes)} class, expected at least 2: nothing to tell apart")
    targets: np.ndarray = np.eye(len(classes))[indices] - 1 / len(classes)
    return targets


def _are_words(targets: object) -> bool:
    try:
        return np.asarray(targets).dtype.kind in "US"
    except ValueError:  # rows of several lengths, which are refused by name
        return False


def _targets(targets: AnyArray, n: int, labels: bool | None) -> np.ndarray:
    """(n, outputs), in their own dtype."""
    words = labels is not False and _are_words(targets)
    given = np.asarray(targets) if words else concrete(targets, "targets")
    if given.ndim not in (1, 2) or len(given) != n:
        raise ValueError(f"targets have shape {given.shape}, expected ({n},) or ({n}, outputs): one row per input")
    if not words and not np.isfinite(given).all():
        raise ValueError("targets have NaN or infinite values, expected finite ones: clean them")
    column = given.size == n
    if labels and not column:
        raise ValueError(f"labels have shape {given.shape}, expected ({n},): one class per input")
    if labels is None and column and given.dtype.kind not in "biuUS":
        values = np.unique(given)
        if 3 <= len(values) <= n // 2 and (values == np.round(values)).all():
            raise ValueError(
                f"targets are {len(values)} whole numbers in {given.dtype}, which may be class labels or numbers: say "
                "which, labels=True or labels=False"
            )
    if labels or (labels is None and column and given.dtype.kind in "biuUS"):
        return centered_one_hot(given.reshape(n))
    return given.reshape(n, -1)


def _products(y: np.ndarray, ndim: int) -> Float64[np.ndarray, "n n *outputs"]:
    """Y Y' (n, n), or of each output (n, n, C), or of all pairs of outputs (n, n, C, C): as a kernel of `ndim` axes."""
    y = y.astype(np.float64)
    axes = {2: "ac,bc->ab", 3: "ac,bc->abc", 4: "ac,bd->abcd"}[ndim]
    products: np.ndarray = np.einsum(axes, y, y, optimize=True)
    return products


def _pair(kernel1: AnyKernel, kernel2: AnyKernel, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Both kernels, in their own dtypes."""
    first, second = (entries(kernel, which)[0] for kernel in (kernel1, kernel2))
    if first.shape != second.shape:
        raise ValueError(f"kernels have shapes {first.shape} and {second.shape}, expected the same inputs and layout")
    if not first.any() or not second.any():
        raise ValueError("a kernel is zero everywhere, which has no direction: check inputs and variances")
    return first, second


def _direction(given: np.ndarray, project: Callable[[np.ndarray], np.ndarray], name: str) -> Direction:
    """Direction of the matrix that a projection leaves; ValueError where nothing but rounding is left."""
    values = given.astype(np.float64)
    values = project(values / (float(np.max(np.abs(values))) or 1.0))
    size = float(np.linalg.norm(values))
    turned = _turned(size, given.size, given.dtype, name)
    return Direction(values / size, turned)


def _turned(size: float, entries: int, dtype: np.dtype, name: str) -> float:
    """The angle by which rounding may have turned a centered matrix of this length and largest entry 1 before that."""
    # a projection lengthens nothing, nor does it the matrix of rounding errors
    rounding = ROUNDINGS * machine_eps(dtype) * math.sqrt(entries)
    if size <= rounding:
        cure = "" if machine_eps(dtype) == machine_eps(np.dtype(np.float64)) else ", or compute it in float64"
        raise ValueError(
            f"{name} is zero once centered, up to the rounding of {dtype}: no direction is left to compare; take "
            f"inputs that it tells apart{cure}"
        )
    return math.asin(rounding / size)


def _rows(kernel: AnyKernel, which: str, unbiased: bool) -> Rows:
    """A kernel to be read by rows, which is symmetric where the unbiased estimates are asked for."""
    rows = rows_of(kernel, which)
    if unbiased:
        _check_pairs(rows.shape)
        if not rows.symmetric:
            entry_error(entries(kernel, which)[0].astype(np.float64), rows.dtype)
    return rows


def _by_rows(first: Rows, second: Rows, projection: Projection, *, off: float = 0.0) -> float:
    """The alignment of two kernels of which one is on disk; `off` is what the second is off by beside its rounding."""
    if first.shape != second.shape:
        raise ValueError(f"kernels have shapes {first.shape} and {second.shape}, expected the same inputs and layout")
    slices = min(first, second, key=lambda rows: rows.size).slices
    product, *lengths = inner_products(first.checked, second.checked, slices, projection=projection)
    if projection == "none" and 0.0 in lengths:
        raise ValueError("a kernel is zero everywhere, which has no direction: check inputs and variances")
    if projection != "none":
        both, count = zip((first, second), lengths, strict=True), first.shape[0] * first.shape[1]
        _warn_unresolved(sum(_turned(size, count, rows.dtype, "a kernel") for rows, size in both) + off)
    return min(1.0, max(-1.0, product / lengths[0] / lengths[1]))


def _with_targets_by_rows(rows: Rows, targets: AnyArray, labels: bool | None, projection: Projection) -> float:
    """The alignment of a kernel on disk with the targets' Y Y'."""
    if rows.shape[0] != rows.shape[1]:
        raise ValueError(f"kernel has shape {rows.shape}, expected one set of inputs against itself")
    y, off = _targets(targets, rows.shape[0], labels), 0.0
    if projection != "none":
        known = _direction(y, lambda given: given - given.mean(axis=0), "targets")
        y, off = known.unit, _off_by(known.error, y.shape[1])
    else:
        y = y.astype(np.float64)
    wanted = replace(rows, dtype=np.dtype(np.float64), log_scale=0.0, read=lambda part: y[part] @ y.T)
    return _by_rows(rows, wanted, projection, off=off)


def _off_by(error: float, outputs: int) -> float:
    """The angle by which Y Y' may be turned where Y may be by `error`."""
    return math.asin(min(1.0, 2 * math.sqrt(outputs) * math.sin(error)))  # |Y Y'| >= |Y|^2 / sqrt(C)


def _projection(kernel: np.ndarray, unbiased: bool) -> Callable[[np.ndarray], np.ndarray]:
    """The projection that centers kernels of this shape."""
    if not unbiased:
        return _centered
    _check_pairs(kernel.shape)
    entry_error(kernel.astype(np.float64), kernel.dtype)  # refuses what is not symmetric
    return _hollow


def _check_pairs(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 4:
        raise ValueError(
            f"the unbiased alignment is one of kernels (n, n) of at least 4 inputs, got shape {shape}: take one set of "
            "inputs against itself, of outputs their trace, or more inputs"
        )


def _centered(kernel: np.ndarray) -> np.ndarray:
    rows = kernel - kernel.mean(axis=0, keepdims=True)
    centered: np.ndarray = rows - rows.mean(axis=1, keepdims=True)
    return centered


def _hollow(kernel: np.ndarray) -> np.ndarray:
    """The kernel without its diagonal, projected onto such matrices whose rows and columns sum to 0."""
    n = len(kernel)
    off = ~np.eye(n, dtype=bool)
    hollow = np.where(off, (kernel + kernel.T) / 2, 0)
    rows = hollow.sum(axis=1, keepdims=True) / (n - 2)
    projected: np.ndarray = np.where(off, hollow - rows - rows.T + hollow.sum() / ((n - 1) * (n - 2)), 0)
    return projected


def _unit(kernel: np.ndarray) -> Float64[np.ndarray, "..."]:
    values = kernel.astype(np.float64)
    scaled = values / np.max(np.abs(values))  # first, so that no square leaves float64's range
    unit: np.ndarray = scaled / np.linalg.norm(scaled)
    return unit


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return min(1.0, max(-1.0, float(np.sum(first * second))))  # rounding


def _resolved_cosine(first: Direction, second: Direction) -> float:
    _warn_unresolved(first.error + second.error)
    return _cosine(first.unit, second.unit)


def _warn_unresolved(error: float) -> None:
    if error > RESOLVED:
        warnings.warn(
            f"the centered alignment may be off by {min(error, 2.0):.2g}, for the rounding of its kernels, which are "
            "nearly the same for all inputs: compute them in float64",
            UnresolvedAlignmentWarning,
            stacklevel=4,
        )
