"""Residual networks in mean field: gradients that grow with the exponential of a square root."""

from ..contract import Paper

PAPER = Paper(
    name="Yang & Schoenholz 2017",
    title="Mean Field Residual Networks: On the Edge of Chaos",
    authors="Greg Yang, Samuel S. Schoenholz",
    year=2017,
    arxiv="1712.08969",
    venue="NeurIPS 2017",
    claims=("residual_tanh_length", "residual_tanh_gradients", "residual_relu_gradients"),
    slow=("residual_tanh_gradients", "residual_relu_gradients"),
)
