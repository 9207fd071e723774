"""Kernels of infinitely wide layers of powers of ReLU."""

from ..contract import Paper

PAPER = Paper(
    name="Cho & Saul 2009",
    title="Kernel Methods for Deep Learning",
    authors="Youngmin Cho, Lawrence K. Saul",
    year=2009,
    arxiv="",
    venue="NeurIPS 2009",
    url="https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning",
    claims=("arc_cosine_kernels",),
    slow=("arc_cosine_kernels",),
)
