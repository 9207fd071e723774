"""Does the network keep inputs apart: are its outputs, and its activations, no more alike than its inputs?"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from ntk_analysis.layers import Activation, Layer
from ntk_analysis.layers.base import as_params_dtype

from ...contract import Claim, Evidence, Relation, Setting
from ...subject import Subject
from ...tolerances import sampling

CLAIM = Claim(
    id="decorrelation",
    title="inputs stay apart",
    statement="Outputs are no more alike than inputs. In a straight deep network they all become the same; with batch "
    "norm or weight mean they do not.",
    source="Fig. 3, Supp. Fig. 2",
    formula=r"\frac{\langle f(u) \cdot f(v) \rangle}{\langle |f(u)|^2 \rangle} \le "
    r"\frac{\langle u \cdot v \rangle}{\langle |u|^2 \rangle}",
    recorded=None,
    summary="",
)
SHOWN = 6  # layers


def check(setting: Setting, subject: Subject) -> Evidence:
    """Checks outputs as stated, and pre-activations of every layer where the network shows them."""
    del setting
    growth, evidence = subject.found.growth, Evidence()
    if np.isnan(growth.outputs_alike):
        evidence.open = "the outputs are zero for all inputs: they are neither alike nor apart"
        return evidence
    evidence.stated(
        "how alike outputs are",
        expected=growth.inputs_alike,
        measured=growth.outputs_alike,
        tolerance=sampling(
            growth.quantile * growth.outputs_alike_error + subject.rounding,
            "95 % of networks with the same weights shuffled",
        ),
        condition=f"{len(subject.x)} inputs, end to end",
        relation=Relation.AT_MOST,
    )
    if isinstance(subject.network, Layer):
        _layers(evidence, subject, subject.network)
    else:
        evidence.note("Activations are not looked at: a plain function shows its outputs only.")
    return evidence


def _layers(evidence: Evidence, subject: Subject, network: Layer) -> None:
    inputs = cosines(subject.x)
    with subject.precision:
        x = as_params_dtype(subject.params, subject.x)
        last, before = x, []
        for layer, output in network.walk(network.activations(subject.params, x)):
            if isinstance(layer, Activation):
                before.append(cosines(np.asarray(last)))
            last = output
    for number in sorted({*np.geomspace(1, len(before), SHOWN).astype(int).tolist()}) if before else ():
        grown, error = mean_off_diagonal(before[number - 1] - inputs)
        start = mean_off_diagonal(inputs)[0]
        evidence.varied(
            "mean cosine of pre-activations",
            expected=start,
            measured=start + grown,
            tolerance=sampling(5 * error + subject.rounding, "5 standard errors over inputs (jackknife)"),
            condition=f"activation {number} of {len(before)}",
            relation=Relation.AT_MOST,
        )


def cosines(values: np.ndarray) -> Float64[np.ndarray, "n n"]:
    """Returns the cosines between rows of any shape; with a row of zeros they are 0."""
    rows = np.asarray(jnp.reshape(values, (len(values), -1)), np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return rows @ rows.T


def mean_off_diagonal(matrix: Float64[np.ndarray, "n n"]) -> tuple[float, float]:
    """Returns the mean over pairs of different inputs, and its jackknife error over inputs (0 for fewer than 4)."""
    n = len(matrix)
    off = matrix - np.diag(np.diag(matrix))
    total = off.sum()
    if n < 4:
        return float(total / (n * (n - 1))), 0.0
    without = (total - 2 * off.sum(axis=1)) / ((n - 1) * (n - 2))
    error = np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))
    return float(total / (n * (n - 1))), float(error)
