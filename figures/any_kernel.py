"""The picture of one kernel, whatever it is: its matrix, and the spectrum beside it."""

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis import spectrum
from ntk_analysis.any_kernel import AnyKernel, entries

from .kernel_matrices import COLORMAP, NORM, condition_text, constant_mode, draw_eigenvalues, mark_classes
from .style import GREY, house_style, panels, plain_ticks


def draw_kernel(kernel: AnyKernel, labels: Sequence[int] | None = None, *, which: str = "ntk") -> Figure:
    """Draws a kernel of inputs with themselves: the matrix over its largest diagonal entry, and its eigenvalues.

    Several outputs are averaged. A circle marks the eigenvector that is nearly constant, if there is one; the condition
    number without it stands in brackets where that is over 10 % away.

    Args:
        kernel: an infinite `Kernel`, an `EmpiricalKernel`, the path of a saved one, or an array (m, m).
        labels: classes (m,) of the inputs, by which they are sorted and marked; None leaves the inputs in their order.
        which: "ntk" or "nngp".

    Raises:
        ValueError: the kernel is not square, has no positive diagonal, or labels do not fit.
    """
    values = entries(kernel, which).values
    matrix = values if values.ndim == 2 else np.einsum("abcc->ab" if values.ndim == 4 else "abc->ab", values)
    rows, columns = matrix.shape
    if rows != columns or not (np.diagonal(matrix) > 0).all():
        raise ValueError(
            f"got a kernel of {rows} x {columns} inputs, expected one of inputs with themselves, whose diagonal is "
            "positive"
        )
    classes = np.zeros(rows, int) if labels is None else np.asarray(labels)
    if classes.shape != (rows,):
        raise ValueError(f"got labels of shape {classes.shape}, expected ({rows},), one for each input of the kernel")
    order = np.argsort(classes, kind="stable")
    matrix, classes = matrix[np.ix_(order, order)] / np.diagonal(matrix).max(), classes[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spectrum.UnresolvedSpectrumWarning)  # the title says that it is a bound
        whole, rest = spectrum.analyse(matrix), spectrum.analyse(matrix, without=np.ones(rows))
    values = whole.eigenvalues_scaled / np.mean(whole.eigenvalues_scaled)
    sign = "=" if whole.resolved and rest.resolved else r"\geq"
    with house_style():
        figure, (left, right) = panels(2, share=False, height=3.0)
        shown = left.imshow(matrix, norm=NORM, cmap=COLORMAP, interpolation="nearest")
        left.set(xticks=[], yticks=[], title=f"{which.upper()} over its largest entry")
        mark_classes(left, classes, named=True)
        figure.colorbar(shown, ax=left, shrink=0.8)
        draw_eigenvalues(right, values[values > 0], constant_mode(matrix), GREY, "-")
        kappa = condition_text(whole.condition_number, rest.condition_number)
        right.set(xlabel="index", ylabel="eigenvalue / mean", title=rf"spectrum, $\kappa {sign}$ {kappa}")
        for axis in (right.xaxis, right.yaxis):
            plain_ticks(axis)
    return figure
