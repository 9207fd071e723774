"""Mean-field theory: one layer as a table, its phases as a map."""

from pathlib import Path
from typing import Annotated

from typer import Option

from ntk_analysis.cli.effects import refuse_idle
from ntk_analysis.cli.options import Activation, BiasVariance, NormalizationName, WeightVariance
from ntk_analysis.common.normalizations import row_of


def meanfield(
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    *,
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    batch_size: Annotated[
        int | None,
        Option(help="Number of inputs in a batch, for --normalization batch only; default: infinitely many."),
    ] = None,
    out: Annotated[Path | None, Option(help="File for the results as numbers, .json.")] = None,
) -> None:
    """Says whether one layer is ordered, critical or chaotic: q*, chi_1, its phase and its fixed points."""
    from ntk_analysis.cli.output import json_text, meanfield_record, meanfield_table
    from ntk_analysis.common.files import require_result, write_whole
    from ntk_analysis.meanfield import analyse

    if out is not None:
        require_result(out, (".json",))
    if row_of(normalization).infinite == "batch":
        given = {name for name, value in (("w_var", w_var), ("b_var", b_var)) if value}
        refuse_idle(given, f"with --normalization {normalization}, which undoes it")
    field = analyse(activation, normalization=normalization, w_var=w_var, b_var=b_var, batch_size=batch_size)
    table = meanfield_table(field)
    width = max(map(len, table))
    for key, value in table.items():
        print(f"{key:<{width}}  {value}")
    if out is not None:
        write_whole(out, lambda temporary: temporary.write_text(json_text(meanfield_record(field)), encoding="utf-8"))
        print(f"written to {out}")


def phase(
    activation: Activation = "tanh",
    normalization: NormalizationName = "none",
    *,
    w_var: Annotated[str, Option(help="Variances of weights, evenly spaced, as FIRST:LAST:POINTS.")] = "0.1:4:40",
    b_var: Annotated[str, Option(help="Variances of biases, evenly spaced, as FIRST:LAST:POINTS.")] = "0:1:21",
    out: Annotated[Path | None, Option(help="File for the whole diagram, .npz.")] = None,
) -> None:
    """Draws the phase over variances of weights and biases, as a map of letters: ordered, critical, chaotic."""
    from ntk_analysis.cli.output import grid, phase_map, save_phase_diagram
    from ntk_analysis.common.files import require_result, write_whole
    from ntk_analysis.meanfield import phase_diagram

    if out is not None:
        require_result(out, (".npz",))
    diagram = phase_diagram(
        activation, normalization=normalization, w_var=grid(w_var, "--w-var"), b_var=grid(b_var, "--b-var")
    )
    print(phase_map(diagram))
    if out is not None:
        write_whole(out, lambda temporary: save_phase_diagram(temporary, diagram))
        print(f"written to {out}")
