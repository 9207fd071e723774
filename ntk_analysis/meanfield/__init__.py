"""One block of a network (dense layer and activation) as a map of two numbers, the variance q and the correlation rho.

    q'     = w_var V(q) + b_var,                  V(q) = E[phi(u)^2], minus E[phi(u)]^2 under weight centering
    T(rho) = (w_var C(q, rho) + b_var) / q,       C = E[phi(u) phi(v)], minus E[phi]^2;  at the fixed point q = q_star
    chi_1  = w_var E[phi'(u)^2],                  T'(rho) = w_var E[phi'(u) phi'(v)]

(Poole et al. 2016; Schoenholz et al. 2017; with centering MimicNorm, Theorem 3). chi_1 is the same expression with and
without centering, because subtracting a constant does not change phi'. Correlations are carried as cosine distances
1 - rho throughout, so that nothing cancels near rho = 1. Everything is float64, whatever JAX's x64 flag says.

Batch normalisation acts on a whole batch and is no map of two numbers: its rates at its fixed point stand in `batch`,
and what its remembered statistics do to new points in `evaluation`.
"""

from ntk_analysis.meanfield.analysis import AnyActivation, analyse
from ntk_analysis.meanfield.batch import BatchNormField, ForwardEigenvalues
from ntk_analysis.meanfield.block import FixedPoint, MeanField
from ntk_analysis.meanfield.diagram import CriticalLine, PhaseDiagram, critical_line, phase_diagram
from ntk_analysis.meanfield.evaluation import EvaluationMode, evaluation_mode

__all__ = [
    "AnyActivation",
    "BatchNormField",
    "CriticalLine",
    "EvaluationMode",
    "FixedPoint",
    "ForwardEigenvalues",
    "MeanField",
    "PhaseDiagram",
    "analyse",
    "critical_line",
    "evaluation_mode",
    "phase_diagram",
]
