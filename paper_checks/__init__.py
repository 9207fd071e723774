"""The paper's claims, each computed, measured and judged: one module a claim.

The order is that of the paper: its formulas, its theorems, its experiments; then what its proofs get wrong, and the
questions that it leaves out.
"""

CLAIMS = (
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
)
