"""Gradient descent on a network of layers: its largest stable step, its distance from the linearised network, and
whether the network's outputs depend on the scale of its weights.
"""

from ntk_analysis.descent.dynamics import LinearisationStudy as LinearisationStudy
from ntk_analysis.descent.dynamics import Linearised as Linearised
from ntk_analysis.descent.dynamics import against_linearised as against_linearised
from ntk_analysis.descent.dynamics import linearised as linearised
from ntk_analysis.descent.dynamics import trained_outputs as trained_outputs
from ntk_analysis.descent.invariance import ScaleInvariance as ScaleInvariance
from ntk_analysis.descent.invariance import scale_invariance as scale_invariance
from ntk_analysis.descent.stability import StableRate as StableRate
from ntk_analysis.descent.stability import largest_stable_learning_rate as largest_stable_learning_rate
from ntk_analysis.descent.stability import loss_curve as loss_curve
