"""Trainability and generalisation of deep networks, read off the spectrum of their tangent kernel."""

from ..contract import Paper

PAPER = Paper(
    name="Xiao et al. 2020",
    title="Disentangling Trainability and Generalization in Deep Neural Networks",
    authors="Lechao Xiao, Jeffrey Pennington, Samuel S. Schoenholz",
    year=2020,
    arxiv="1912.13053",
    venue="ICML 2020",
    claims=(
        "critical_condition_number",
        "pooled_condition_number",
        "largest_eigenvalue_by_phase",
        "mean_predictor_in_chaos",
    ),
    slow=(
        "critical_condition_number",
        "pooled_condition_number",
        "largest_eigenvalue_by_phase",
        "mean_predictor_in_chaos",
    ),
)
