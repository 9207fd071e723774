"""The report: what was measured on one network, as a record and as text."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_analysis.diagnosis.correlations import LayerCorrelations
from ntk_analysis.diagnosis.growth import Growth
from ntk_analysis.diagnosis.shares import Shares
from ntk_analysis.diagnosis.verdict import Verdict
from ntk_analysis.meanfield import BatchNormField, MeanField
from ntk_analysis.spectrum import Spectrum

SHOWN = 5  # number of shares in the summary, at most


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Measurements on one network, and the verdict.

    Attributes:
        inputs: number N of inputs.
        outputs: number C of outputs.
        parameters: number of trained parameters.
        method: name of the method by which the kernel was computed.
        coupling: text that says what couples the outputs of the batch; empty if nothing does.
        trace: spectrum of the tangent kernel averaged over outputs, (N, N).
        full: spectrum of the whole kernel, (N C, N C); None if it was too large.
        ntk_ratio: mean entry off the diagonal / mean entry on it, of the averaged kernel.
        by_layer: each layer's share of the trace of the tangent kernel, on the inputs whose perturbations are followed.
        by_kind: the share of each kind of array, such as kernels, biases or scales.
        products: length of the longest chain of matrix products and convolutions.
        growth: growth of perturbations from inputs to outputs.
        layers: correlations by layer; None for a function that is not one of our networks.
        field: mean-field theory of the network's block; None if there is no such block.
        field_reason: reason why there is no such theory.
        verdict: the phase: ordered, critical, chaotic or not decidable, with the reason.
    """

    inputs: int
    outputs: int
    parameters: int
    method: str
    coupling: str
    trace: Spectrum
    full: Spectrum | None
    ntk_ratio: float
    by_layer: Shares
    by_kind: Shares
    products: int
    growth: Growth
    layers: LayerCorrelations | None
    field: MeanField | BatchNormField | None
    field_reason: str
    verdict: Verdict

    @property
    def coupled(self) -> bool:
        """Whether an output depends on its batch: on other inputs, its place in the batch or the batch's size."""
        return bool(self.coupling)

    @property
    def spectrum(self) -> Spectrum:
        """The full kernel's spectrum if there is one, as gradient descent sees it; else that of the averaged kernel."""
        return self.trace if self.full is None else self.full

    @property
    def learning_rate_convention(self) -> str:
        """Loss and parametrisation of `spectrum.learning_rate`, and whether it is exact."""
        bound = " (an upper bound of it: the kernel is averaged over outputs)" if self._averaged else ""
        return f"loss 1/2 sum |f - y|^2 over inputs and outputs, full-batch, params as f takes them{bound}"

    @property
    def log_chi(self) -> float:
        """The estimate of ln chi_1, ln G per layer; NaN for a network of fewer than two products."""
        return self.growth.estimate[0] / (self.products - 1) if self.products > 1 else math.nan

    @property
    def _averaged(self) -> bool:
        return self.full is None and self.outputs > 1

    def record(self) -> dict[str, Any]:
        """All results as a dict that JSON can hold (infinite numbers and NaN become null)."""
        spectra = {"trace": self.trace} | ({} if self.full is None else {"full": self.full})
        record: dict[str, Any] = {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "parameters": self.parameters,
            "ntk_method": self.method,
            "dtype": str(self.trace.input_dtype),
            "coupled": self.coupled,
            "coupling": self.coupling,
            "ntk": {name: _spectrum_record(found) for name, found in spectra.items()},
            "largest_stable_learning_rate": _finite(self.spectrum.learning_rate),
            "learning_rate_convention": self.learning_rate_convention,
            "ntk_off_diagonal_ratio": _finite(self.ntk_ratio),
            "ntk_trace_shares": {"layer": self.by_layer._asdict(), "kind": self.by_kind._asdict()},
            "products": self.products,
            "growth": {name: _finite(float(value)) for name, value in self.growth._asdict().items()},
            "log_chi": _finite(self.log_chi),
            "verdict": self.verdict._asdict(),
            "mean_field": _field_record(self.field) if self.field else {"reason": self.field_reason},
        }
        if self.layers is not None:
            record["layers"] = {
                name: None if values is None else [_finite(float(value)) for value in values]
                for name, values in self.layers._asdict().items()
            }
        return record

    def summary(self) -> str:
        """The report as text, one fact a line."""
        rows = {
            "network": f"{self.parameters:,} parameters, {self.outputs} outputs, {self.products} products in a row",
            "batch": f"{self.inputs} inputs, " + (f"coupled ({self.coupling})" if self.coupled else "not coupled"),
            "NTK": f"{self.trace.input_dtype}, by {self.method}",
        }
        for name, found in (("mean over outputs", self.trace), ("all outputs", self.full)):
            if found is not None:
                rows[f"  {name}"] = _spectrum_line(found)
        growth = self.growth
        rows |= {
            "  trace by layer": _shares_line(self.by_layer),
            **({"  trace by kind": _shares_line(self.by_kind)} if self.by_kind.names != self.by_layer.names else {}),
            "learning rate": f"< {self.spectrum.learning_rate:.4g} ({self.learning_rate_convention})",
            "evidence": "",
            "  perturbations": self._perturbations_line(),
            "  outputs alike": self._alike_line(),
            "  NTK": f"off-diagonal / diagonal {self.ntk_ratio:.3f} (ordered: 1, chaotic: to 0)",
            "  signal": f"outputs' mean square is {growth.scale:.3g} times the inputs'",
            "  mean field": _field_line(self.field) if self.field else self.field_reason,
            "  by layer": self._layers_line(),
            "verdict": f"{self.verdict.phase}: {self.verdict.reason}",
        }
        if not growth.typical and math.isfinite(growth.shuffled):
            rows["note"] = (
                f"with the same weights shuffled they grow {_power(growth.shuffled)}: trained or structured, no random "
                "network"
            )
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows.items())

    __str__ = summary

    def _perturbations_line(self) -> str:
        growth = self.growth
        if math.isnan(growth.log_gain):
            return "not defined, outputs are zero"
        if math.isinf(growth.log_gain):
            return f"derivatives by the inputs {'are zero' if growth.log_gain < 0 else 'overflow'}"
        line = f"squares grow {_power(growth.log_gain)} relative to the signal, ln = {growth.log_gain:.3g} "
        line += f"+- {growth.error:.2g} (one draw)"
        return line + (f", chi_1 = {_power(self.log_chi)} per layer" if self.products > 1 else "")

    def _alike_line(self) -> str:
        growth = self.growth
        if math.isnan(growth.outputs_alike):
            return "not defined, outputs are zero"
        line = f"{growth.outputs_alike:.3f} +- {growth.outputs_alike_error:.3f}, inputs {growth.inputs_alike:.3f}"
        return f"{line} (mean over pairs; ordered: 1)"

    def _layers_line(self) -> str:
        if self.layers is None:
            return "not available: a plain function shows its outputs only"
        measured, predicted = self.layers
        if len(measured) == 0:
            return "no activation in the network"
        shown = sorted({*np.geomspace(1, len(measured), 6).astype(int).tolist()})
        parts = [
            f"{layer}: {_correlation(measured[layer - 1])}"
            + (f" ({_correlation(predicted[layer - 1])})" if predicted is not None else "")
            for layer in shown
        ]
        return "correlation" + (" (predicted) " if predicted is not None else " ") + ", ".join(parts)


def _correlation(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _field_line(field: MeanField | BatchNormField) -> str:
    if field.chi_1 is None:
        return f"variance without bound: {field.reason}" if isinstance(field, MeanField) else "none"
    line = f"chi_1 = {field.chi_1:.4g} per layer ({field.phase})"
    shrinks = isinstance(field, MeanField) and field.q_star == 0 and field.variance_slope
    if shrinks:
        line += f", and the signal's square times {shrinks:.4g}: relative to it {field.chi_1 / shrinks:.4g}"
    return line


def _field_record(field: MeanField | BatchNormField) -> dict[str, Any]:
    return {"chi_1": field.chi_1, "phase": field.phase, "normalization": field.normalization}


def _shares_line(found: Shares) -> str:
    """The largest shares, and how many others there are."""
    order = sorted(range(len(found.names)), key=lambda index: -found.shares[index])
    parts = [f"{found.names[k]} {found.shares[k]:.1%} +- {found.errors[k]:.1%}" for k in order[:SHOWN]]
    rest = order[SHOWN:]
    return ", ".join([*parts, *([f"{len(rest)} others {sum(found.shares[k] for k in rest):.1%}"] if rest else [])])


def _spectrum_line(found: Spectrum) -> str:
    at_least = "> " if found.condition_number_is_lower_bound else ""
    return (
        f"condition number {at_least}{found.condition_number:.4g}, outlier ratio {found.outlier_ratio:.4g}, effective "
        f"rank {found.effective_rank:.4g} of {len(found.eigenvalues_scaled)}"
    )


def _spectrum_record(found: Spectrum) -> dict[str, Any]:
    return {
        "condition_number": _finite(found.condition_number),
        "condition_number_is_lower_bound": found.condition_number_is_lower_bound,
        "outlier_ratio": _finite(found.outlier_ratio),
        "effective_rank": _finite(found.effective_rank),
        "largest_eigenvalue": _finite(found.largest),
        "smallest_eigenvalue": _finite(found.smallest),
        "eigenvalues": found.eigenvalues.tolist(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _power(log: float) -> str:
    """exp(log) as text for a factor, also where float64 cannot hold it."""
    return f"{math.exp(log):.3g}-fold" if abs(log) < 300 else f"10^{log / math.log(10):.0f}-fold"
