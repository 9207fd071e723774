"""Results of the command line as text, JSON and NumPy archives."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ntk_analysis import __version__, spectrum
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.meanfield import BatchNormField, MeanField, PhaseDiagram

PHASE_LETTERS = {"ordered": "o", "critical": "+", "chaotic": "c", "unbounded": ".", "undecided": " "}


def kernel_record(kernel: Kernel, begin: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts about a kernel for JSON, and its arrays: nngp, ntk_scaled (ntk = ntk_scaled exp(log_scale)), spectra.

    `begin` is told when each of the two spectra is begun.
    """
    spectra = {}
    for which in ("ntk", "nngp"):
        begin(f"spectrum of the {which.upper()}")
        spectra[which] = spectrum.analyse(kernel, which=which)
    arrays = {"nngp": np.asarray(kernel.nngp), **kernel.arrays()}
    record: dict[str, Any] = {"version": __version__, "log_scale": float(kernel.log_scale)}
    for which, found in spectra.items():
        arrays[f"{which}_eigenvalues_scaled"] = found.eigenvalues_scaled
        record[which] = {
            "condition_number": found.condition_number,
            "condition_number_is_lower_bound": found.condition_number_is_lower_bound,
            "largest_eigenvalue_scaled": float(found.eigenvalues_scaled[0]),
            "smallest_eigenvalue_scaled": float(found.eigenvalues_scaled[-1]),
            "outlier_ratio": found.outlier_ratio,
            "effective_rank": found.effective_rank,
            "largest_stable_learning_rate_scaled": found.learning_rate_scaled,
            "learning_rate_convention": found.learning_rate_convention,
        }
    record["relative_error_of_distances"] = float(kernel.relative_error)
    record["approximation_error"] = kernel.approximation_error
    record["summary"] = spectra["ntk"].summary()
    return record, arrays


def write_kernel(path: Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a kernel: to .npz its arrays and, under `record`, the record as JSON; to .json record and eigenvalues."""
    if path.suffix == ".npz":
        np.savez_compressed(path, record=np.array(json_text(record)), **arrays)  # type: ignore[arg-type]
        return
    eigenvalues = {name: values.tolist() for name, values in arrays.items() if values.ndim == 1}
    path.write_text(json_text(record | eigenvalues), encoding="utf-8")


def json_text(record: object) -> str:
    """A record as JSON, which knows no infinite numbers and no NaN: they become null."""
    return json.dumps(_writable(record), indent=2, allow_nan=False) + "\n"


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _writable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def meanfield_record(field: MeanField | BatchNormField) -> dict[str, Any]:
    """The fields of the analysis as numbers, for JSON; the activation by its name."""
    record = {name: value for name, value in vars(field).items() if name not in ("activation", "fixed_points")}
    record = {"version": __version__, "activation": str(field.activation), **record}
    if isinstance(field, BatchNormField):
        return record | {"eigenvalues": field.eigenvalues._asdict(), "condition_number": field.condition_number}
    return record | {"fixed_points": [asdict(point) for point in field.fixed_points]}


def meanfield_table(field: MeanField | BatchNormField) -> dict[str, str]:
    """The rows that `ntk-analysis meanfield` prints."""
    if isinstance(field, BatchNormField):
        return _batch_table(field)

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.6g}"

    fixed = "; ".join(
        f"{point.correlation:.6g} ({'stable' if point.stable else 'unstable'}, slope {point.slope:.6g})"
        for point in field.fixed_points
    )
    table = {
        "activation": str(field.activation),
        "normalization": field.normalization,
        "w_var": number(field.w_var),
        "b_var": number(field.b_var),
        "q*": number(field.q_star) + (" (scale-free: any variance is kept)" if field.scale_free else ""),
        "dq'/dq at q*": number(field.variance_slope) + _runs_away(field),
        "chi_1": number(field.chi_1),
        "chi_1 error": "none" if field.chi_1_error is None else f"at most {field.chi_1_error:.1g}",
        "phase": field.phase or "none",
        "fixed points": fixed or "none",
        "correlation length": number(field.correlation_length),
    }
    return table | ({"note": field.reason} if field.reason else {})


def _batch_table(field: BatchNormField) -> dict[str, str]:
    eigenvalues = field.eigenvalues
    return {
        "activation": str(field.activation),
        "normalization": field.normalization,
        "batch size": "infinite" if field.batch_size is None else str(field.batch_size),
        "w_var, b_var": "any (batch normalisation undoes both)",
        "chi_1": f"{field.chi_1:.6g} (growth of the NTK and of squared gradients per layer, zero-mean modes)",
        "e1": f"{field.e1:.6g} (constant mode made per zero-mean mode)",
        "NTK condition number, deep": f"{field.condition_number:.6g} (chi_1/e1)",
        "phase": field.phase,
        "c*": f"{field.c_star:.6g} (correlation behind the activation)",
        "forward eigenvalues": f"{eigenvalues.correlations:.6g} (unequal correlations), "
        f"{eigenvalues.variances:.6g} (unequal variances), {eigenvalues.scale:.6g} (scale, constants)",
    }


def _runs_away(field: MeanField) -> str:
    unstable = field.variance_slope is not None and field.variance_slope > 1 + 1e-8
    return " (unstable: q* is kept only if started there exactly)" if unstable else ""


def grid(text: str, option: str) -> np.ndarray:
    """The evenly spaced numbers of FIRST:LAST:POINTS.

    Raises:
        ValueError: the text has another form, or the range is not increasing or has fewer than two points.
    """
    try:
        first, last, points = text.split(":")
        values = np.linspace(float(first), float(last), int(points))
    except ValueError:
        values = np.empty(0)
    if len(values) < 2 or not np.all(np.isfinite(values)) or not np.all(np.diff(values) > 0):
        raise ValueError(f"{option} {text}: expected FIRST:LAST:POINTS, increasing, as in 0.1:4:40")
    return values


def phase_map(diagram: PhaseDiagram) -> str:
    """The diagram as letters, with the largest bias variance on top."""
    rows = [
        f"b_var {bias:7.3f}  " + "".join(PHASE_LETTERS[str(phase)] for phase in phases)
        for bias, phases in zip(diagram.b_var, diagram.phase, strict=True)
    ]
    legend = ", ".join(
        f"{letter} {phase}" if letter.strip() else f"blank {phase}" for phase, letter in PHASE_LETTERS.items()
    )
    axis = f"w_var from {diagram.w_var[0]:g} (left) to {diagram.w_var[-1]:g} (right); {legend}"
    return "\n".join([*reversed(rows), axis])


def save_phase_diagram(path: Path, diagram: PhaseDiagram) -> None:
    """Writes all arrays of a phase diagram to .npz."""
    arrays = {name: value for name, value in asdict(diagram).items() if isinstance(value, np.ndarray)}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
