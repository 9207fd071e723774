"""How deep signals and gradients reach: depth scales, and what dropout does to them."""

from ..contract import Paper

PAPER = Paper(
    name="Schoenholz et al. 2017",
    title="Deep Information Propagation",
    authors="Samuel S. Schoenholz, Justin Gilmer, Surya Ganguli, Jascha Sohl-Dickstein",
    year=2017,
    arxiv="1611.01232",
    venue="ICLR 2017",
    claims=("tanh_critical_line", "tanh_depth_scales", "gradient_growth", "dropout_ends_criticality"),
    slow=("tanh_critical_line", "tanh_depth_scales", "gradient_growth", "dropout_ends_criticality"),
)
