"""The figures: one module each, with compute(config, track) -> Result and draw(result) -> Figure.

Their name is `ntk_analysis.figures`, and they import one another relatively: see `ntk_analysis/figures.py`. Nothing may
stand in this file, which that one replaces in a checkout.
"""
