"""Eigenvalues of the NTK on the sphere."""

from ..contract import Paper

PAPER = Paper(
    name="Bietti & Mairal 2019",
    title="On the Inductive Bias of Neural Tangent Kernels",
    authors="Alberto Bietti, Julien Mairal",
    year=2019,
    arxiv="1905.12173",
    venue="NeurIPS 2019",
    claims=(
        "odd_eigenvalues",
        "eigenvalue_decay",
    ),
    slow=(
        "odd_eigenvalues",
        "eigenvalue_decay",
    ),
)
