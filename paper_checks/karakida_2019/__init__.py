"""The Fisher information of wide networks: one outlier, and how a mean subtraction removes it."""

from ..contract import Paper

PAPER = Paper(
    name="Karakida et al. 2019",
    title="The Normalization Method for Alleviating Pathological Sharpness in Wide Neural Networks",
    authors="Ryo Karakida, Shotaro Akaho, Shun-ichi Amari",
    year=2019,
    arxiv="1906.02926",
    venue="NeurIPS 2019",
    claims=(
        "fisher_outlier",
        "mean_subtraction_removes_it",
    ),
    slow=(
        "fisher_outlier",
        "mean_subtraction_removes_it",
    ),
)
