"""The figures: one module each, with compute(config, track) -> Result and draw(result) -> Figure.

Importing this package costs nothing: the modules are imported when a figure is asked for.
"""

NAMES = (
    "fig2",
    "fig3",
    "fig4",
    "fig6",
    "supp1",
    "supp2",
    "supp3",
    "table1",
    "phase_diagram",
    "condition_number",
    "bn_growth",
    "same_kernel",
    "trainability",
    "dynamics",
    "kernel_matrices",
    "generalisation",
    "width_study",
    "learning_rates",
)
