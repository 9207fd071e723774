"""Whether a theory and an average over finite networks agree, and how large a difference would have been seen."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

from ntk_analysis.infinite import Kernel, StoredKernel
from ntk_analysis.monte_carlo.estimate import KernelEstimate
from ntk_analysis.monte_carlo.widths import number_of_entries

LEVEL = 1e-3  # probability with which a right theory is said to disagree


@dataclass(frozen=True, eq=False)
class Agreement:
    """One kernel of a theory against its average.

    Attributes:
        z: differences (n1, n2), average less theory, in standard errors.
        probability: probability that an entry of a right theory is off as far as the worst one is, times the number of
            entries, at most 1; by Student's t, as if draws were Gaussian.
        factor: factor with which the theory fits the average best, by least squares in standard errors.
        visible: smallest difference, relative to sqrt(K(a, a) K(b, b)) or to the largest entry of a kernel of two sets
            of inputs, that would have been told from zero at every entry.
    """

    z: Float64[np.ndarray, "n1 n2"]
    probability: float
    factor: float
    visible: float

    @property
    def worst(self) -> float:
        """Largest difference in standard errors."""
        return float(np.max(np.abs(self.z)))

    @property
    def agrees(self) -> bool:
        """Whether chance alone explains the differences: the probability is at least 0.001."""
        return self.probability >= LEVEL

    def summary(self) -> str:
        """The agreement as part of a line of text."""
        place = ", ".join(map(str, np.unravel_index(np.argmax(np.abs(self.z)), self.z.shape)))
        verdict = "agrees" if self.agrees else f"DIFFERS (the average is {self.factor:.4g} times the theory, at best)"
        return (
            f"{verdict}: at most {self.worst:.1f} standard errors off, at ({place}), probability "
            f"{self.probability:.2g}; {100 * self.visible:.2g} % off would have been seen"
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both kernels of a theory against their averages.

    Attributes:
        nngp: agreement of the NNGP.
        ntk: agreement of the NTK.
        caution: what keeps the comparison from deciding, as text; empty if nothing does.
    """

    nngp: Agreement
    ntk: Agreement
    caution: str = ""

    @property
    def agrees(self) -> bool:
        """Whether both kernels agree; a caution does not count."""
        return self.nngp.agrees and self.ntk.agrees

    def summary(self) -> str:
        """The comparison as two lines of text, and a third one for a caution."""
        lines = [f"NNGP {self.nngp.summary()}", f"NTK {self.ntk.summary()}"]
        return "\n".join(lines + [f"caution: {self.caution}"] * bool(self.caution))

    def __repr__(self) -> str:
        return f"<{self.summary()}>"


def compare(theory: Kernel | StoredKernel | KernelEstimate, estimate: KernelEstimate) -> Comparison:
    """Whether a theory's kernels are those of finite networks, within the errors of an average over them.

    Args:
        theory: infinite-width kernel (of the same inputs), or another estimate, whose errors are added to those of
            `estimate`.
        estimate: average over finite networks, extrapolated in width if the theory is of infinite width.

    Raises:
        TypeError: the theory is neither.
        ValueError: the kernels are not of the same numbers of inputs.
    """
    if not isinstance(theory, Kernel | StoredKernel | KernelEstimate):
        raise TypeError(f"got {type(theory).__name__} as theory, expected an infinite kernel or an estimate")
    found = {name: _agreement(theory, estimate, name) for name in ("nngp", "ntk")}
    return Comparison(**found, caution=_caution(theory, estimate))


def _agreement(theory: Kernel | StoredKernel | KernelEstimate, estimate: KernelEstimate, name: str) -> Agreement:
    expected, mean = (np.asarray(getattr(of, name), np.float64) for of in (theory, estimate))
    if expected.shape != mean.shape:
        raise ValueError(
            f"the theory is of {expected.shape} inputs, the estimate of {mean.shape}: give the same inputs"
        )
    error, freedom = getattr(estimate, f"{name}_error"), estimate.draws - 1
    if isinstance(theory, KernelEstimate):
        error, freedom = np.hypot(error, getattr(theory, f"{name}_error")), min(freedom, theory.draws - 1)
    # entries that are the same in all draws differ by the rounding of float32 at most
    error = np.maximum(error, np.finfo(np.float32).eps * np.max(np.abs(expected)))
    z = (mean - expected) / error
    entries = number_of_entries(mean.shape, symmetric=estimate.symmetric)
    probability = min(1.0, entries * float(2 * student.sf(np.max(np.abs(z)), freedom)))
    threshold = float(student.isf(LEVEL / (2 * entries), freedom))
    weight = 1 / error**2
    size = float(np.sum(weight * expected**2))
    factor = float(np.sum(weight * expected * mean)) / size if size else float("nan")
    return Agreement(z, probability, factor, float(np.max(threshold * error / _sizes(expected, estimate))))


def _sizes(expected: np.ndarray, estimate: KernelEstimate) -> np.ndarray:
    if not estimate.symmetric:
        return np.full(expected.shape, np.max(np.abs(expected)))
    root = np.sqrt(np.diagonal(expected))
    return np.outer(root, root)


def _caution(theory: object, estimate: KernelEstimate) -> str:
    if estimate.misfit < LEVEL:
        return "the averages are no line in 1/width, so that their extrapolation means little: give larger widths"
    if estimate.widths or isinstance(theory, KernelEstimate):
        return ""
    return (
        "the networks have one width, and a theory of infinite width may differ from them by terms of order 1/width: "
        "give widths=(32, 64, 128)"
    )
