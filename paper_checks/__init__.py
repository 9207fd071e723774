"""The claims of papers, each computed, measured and judged: a folder a paper, and in it a module a claim.

Their name is `ntk_analysis.paper_checks`, and they import one another relatively: see `ntk_analysis/paper_checks.py`.
Nothing may stand in this file, which that one replaces in a checkout.
"""
