"""How the activations of finite networks correlate and spread with depth.

Correlations here are over the channels of ONE network, not over networks: Supp. Fig. 1 and 2 and Fig. 2 and 3 of
the paper. Pairs of the same network share its weights, so the independent unit is the draw of a network, and every
standard error is over draws. Which correlation is meant decides the number: see `layer_correlations`.

Precision: float64 (NumPy) inputs are computed in float64, flag or no flag; others in JAX's default dtype. Rows are
centered, then scaled by their largest entry, and only then squared, so that in float32 a correlation is off by some
1e-7, far less than its spread 1/sqrt(width), and gains of 1e-30 or 1e30 change nothing.
"""

from ntk_analysis.correlation.measurement import OBSERVABLES, Seed, channel_distributions, layer_correlations
from ntk_analysis.correlation.pairs import random_pairs
from ntk_analysis.correlation.prediction import predicted_spread
from ntk_analysis.correlation.recording import LayersOf
from ntk_analysis.correlation.statistics import ChannelDistributions, CorrelationByLayer, UndefinedCorrelationWarning

__all__ = [
    "OBSERVABLES",
    "ChannelDistributions",
    "CorrelationByLayer",
    "LayersOf",
    "Seed",
    "UndefinedCorrelationWarning",
    "channel_distributions",
    "layer_correlations",
    "predicted_spread",
    "random_pairs",
]
