"""What an infinitely wide network, trained to the end, predicts of images that it has not seen."""

from typing import NamedTuple

import numpy as np

from ntk_analysis.regression import KernelClassifier

DRAWS = 20  # networks per test image


class Measures(NamedTuple):
    """How one kernel generalises on one split.

    Attributes:
        ensemble: test accuracy of the mean prediction over infinitely many networks; no scale of the outputs moves it.
        single: expected test accuracy of one network, which starts from outputs of the scale of `nngp`.
        condition_number: condition number of the kernel of the training images.
        explained: share of the squares of the centered one-hot test targets that the mean prediction explains.
        training: training accuracy.
    """

    ensemble: float
    single: float
    condition_number: float
    explained: float
    training: float


def measure(
    nngp: np.ndarray, kernel: np.ndarray, labels: np.ndarray, *, train: np.ndarray, test: np.ndarray, seed: int
) -> Measures:
    """Trains on one part of the images by `kernel` to the end, from outputs of covariance `nngp`, and tests on another.

    Args:
        nngp: (m, m) NNGP kernel of all images.
        kernel: (m, m) kernel of training, the NTK or the NNGP.
        labels: (m,) labels of all images.
        train: indices of the training images.
        test: indices of the test images.
        seed: seed of the draws of single networks.
    """
    within, across = np.ix_(train, train), np.ix_(test, train)
    classifier = KernelClassifier("precomputed").fit(kernel[within], labels[train])
    flow, classes, mean = classifier.flow_, classifier.classes_, classifier.outputs(kernel[across])
    start = np.diagonal(nngp)[test]
    deviation = np.sqrt(flow.covariance(kernel[across], nngp[within], nngp[across], start))
    noise = np.random.default_rng(seed).standard_normal((DRAWS, *mean.shape))  # outputs are independent
    drawn = mean + deviation[:, None] * noise
    targets = (labels[test][:, None] == classes) - 1 / len(classes)
    return Measures(
        float(np.mean(classes[np.argmax(mean, axis=-1)] == labels[test])),
        float(np.mean(classes[np.argmax(drawn, axis=-1)] == labels[test])),
        float(flow.eigenvalues_scaled[-1] / flow.eigenvalues_scaled[0]),  # resolved, else the fit had refused
        float(1 - np.sum((mean - targets) ** 2) / np.sum(targets**2)),
        float(classifier.score(kernel[within], labels[train])),
    )
