"""The names of the figures, which are those of their modules, and the order in which they are drawn.

Importing this costs nothing: a module is imported when its figure is asked for.
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
    "image_kernels",
    "trainability",
    "dynamics",
    "kernel_matrices",
    "generalisation",
    "width_study",
    "learning_rates",
    "micro_batch",
    "along_training",
)

# the order in which they are drawn: a quick one first, so that there is soon something to see; long ones before short
# ones, so that processes side by side end together
DEFAULT = (
    "fig4",
    "kernel_matrices",
    "table1",
    "supp3",
    "fig6",
    "bn_growth",
    "phase_diagram",
    "supp2",
    "same_kernel",
    "condition_number",
    "fig2",
    "fig3",
    "supp1",
)
OTHERS = (
    "dynamics",
    "trainability",
    "width_study",
    "learning_rates",
    "image_kernels",
    "generalisation",
    "micro_batch",
    "along_training",
)

# the figures that do not look at a setting of `Config`
WITHOUT = {
    "data": ("fig4", "micro_batch", "phase_diagram", "table1"),
    "image_centering": (
        "along_training",
        "fig4",
        "fig6",
        "learning_rates",
        "micro_batch",
        "phase_diagram",
        "same_kernel",
        "supp3",
        "table1",
    ),
    "seed": ("phase_diagram", "table1"),
}


def selected(names: list[str], *, everything: bool = False) -> list[str]:
    """Returns these names, each once, or for no names the default figures, or all figures, in the order of drawing.

    Raises:
        ValueError: an unknown figure; names beside `everything`.
    """
    if names and everything:
        raise ValueError(f"got --all and {', '.join(names)}: give --all for all figures, or the names of some")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown figure {name!r}: choose from {', '.join(NAMES)}")
    return list(dict.fromkeys(names)) or [*DEFAULT, *(OTHERS if everything else ())]
