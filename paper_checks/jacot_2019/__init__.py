"""Order and chaos of the NTK, and what normalisations do to the boundary between them."""

from ..contract import Paper

PAPER = Paper(
    name="Jacot et al. 2019",
    title="Order and Chaos: NTK views on DNN Normalization, Checkerboard and Boundary Artifacts",
    authors="Arthur Jacot, Franck Gabriel, François Ged, Clément Hongler",
    year=2019,
    arxiv="1907.05715",
    venue="",
    claims=(
        "order_of_relu",
        "constant_mode_of_batch_norm",
    ),
    slow=(
        "order_of_relu",
        "constant_mode_of_batch_norm",
    ),
)
