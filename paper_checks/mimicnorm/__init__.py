"""MimicNorm: weight mean and a last batch norm in the place of all batch norms.

The order of the claims is that of the paper: its formulas, its theorems, its experiments; then what its proofs get
wrong, and the questions that it leaves out.
"""

from ..contract import Paper

PAPER = Paper(
    name="MimicNorm",
    title="MimicNorm: Weight Mean and Last BN Layer Mimic the Dynamic of Batch Normalization",
    authors="Wenbin Fei, Wenrui Dai, Chenglin Li, Junni Zou, Hongkai Xiong",
    year=2020,
    arxiv="2010.09278",
    claims=(
        "eq4",
        "eq7",
        "eq8",
        "prop1",
        "thm1",
        "thm2",
        "lem1",
        "thm3a",
        "thm3b",
        "same",
        "decor",
        "early",
        "lr",
        "acc",
        "mem",
        "fold",
        "thm1_rate",
        "thm2_proof",
        "lem1_supplement",
        "bn_identity",
        "outliers",
        "trainable",
        "generalises",
        "micro",
        "whitens",
        "flops",
        "last_acc",
    ),
    network_claims=("decorrelation", "phase", "conditioning", "scaling", "centering"),
    slow=(
        "generalises",
        "fold",
        "micro",
        "flops",
        "last_acc",
        "whitens",
        "early",
        "lr",
        "acc",
        "mem",
        "outliers",
        "decor",
        "trainable",
        "thm2_proof",
    ),
)
