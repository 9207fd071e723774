"""The picture of a kernel of the user's."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntk_analysis import infinite_kernel
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.figures.any_kernel import draw_kernel
from ntk_analysis.networks import fully_connected

from .tiers import full

X = np.random.default_rng(0).standard_normal((6, 4))
GRAM = X @ X.T + np.eye(6)


def infinite(_=None):
    return infinite_kernel(fully_connected(1, 1), X)


def empirical_of_rank_4(_):
    return empirical_ntk(lambda params, x: x @ params["w"], {"w": np.ones((4, 2))}, X)


def saved(tmp_path):
    infinite().save(tmp_path / "k.npz")
    return tmp_path / "k.npz"


@pytest.mark.parametrize(
    "make",
    [lambda _: GRAM, *full(infinite, empirical_of_rank_4, saved)],
    ids=["array", "infinite", "empirical", "saved"],
)
def test_every_kernel_has_its_picture(make, tmp_path):
    figure = draw_kernel(make(tmp_path), labels=[1, 0, 1, 0, 1, 0])
    left, right, _ = figure.axes
    (shown,) = left.images
    assert shown.get_array().shape == (6, 6)
    assert float(shown.get_array().max()) == 1
    assert [label.get_text() for label in left.get_yticklabels(minor=True)] == ["0", "1"]
    singular = make is empirical_of_rank_4
    assert right.get_title().startswith(r"spectrum, $\kappa \geq$" if singular else r"spectrum, $\kappa =$")
    plt.close(figure)


def test_inputs_are_sorted_by_their_classes():
    figure = draw_kernel(GRAM, labels=[1, 0, 0, 0, 0, 0])
    shown = figure.axes[0].images[0].get_array()
    order = [1, 2, 3, 4, 5, 0]
    np.testing.assert_allclose(shown, GRAM[np.ix_(order, order)] / np.diagonal(GRAM).max())
    plt.close(figure)


@pytest.mark.parametrize(
    ("kernel", "labels", "words"),
    [
        (GRAM[:3], None, "got a kernel of 3 x 6 inputs, expected one of inputs with themselves"),
        (-GRAM, None, "diagonal is positive"),
        (GRAM, [0, 1], r"got labels of shape \(2,\), expected \(6,\)"),
    ],
    ids=["not square", "negative", "labels"],
)
def test_what_is_no_such_kernel_is_one_line(kernel, labels, words):
    with pytest.raises(ValueError, match=words) as caught:
        draw_kernel(kernel, labels)
    assert "\n" not in str(caught.value)
