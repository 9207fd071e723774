"""What depth does to a network of a given normalisation: its kernels, the rates it bears, and what it learns.

Figures draw these numbers, and checks of claims judge them: they are computed here for both.
"""
