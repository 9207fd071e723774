"""Activations and their Gaussian facts: E[phi], E[phi phi] and E[phi' phi'] for any variances and correlation.

Every place that takes an activation takes a name from `NAMED`, an elementwise JAX function, or one of these objects.
"""

from ntk_analysis.activations.by_dual import ByDual as ByDual
from ntk_analysis.activations.by_dual import MomentFormula as MomentFormula
from ntk_analysis.activations.by_dual import by_dual as by_dual
from ntk_analysis.activations.by_dual import exponential_normalized as exponential_normalized
from ntk_analysis.activations.functions import ALIASES as ALIASES
from ntk_analysis.activations.functions import FUNCTIONS as FUNCTIONS
from ntk_analysis.activations.functions import NAMED as NAMED
from ntk_analysis.activations.functions import Activation as Activation
from ntk_analysis.activations.functions import Elementwise as Elementwise
from ntk_analysis.activations.functions import Erf as Erf
from ntk_analysis.activations.functions import Gelu as Gelu
from ntk_analysis.activations.functions import InVariance as InVariance
from ntk_analysis.activations.functions import Joint as Joint
from ntk_analysis.activations.functions import PiecewiseLinear as PiecewiseLinear
from ntk_analysis.activations.functions import Quadrature as Quadrature
from ntk_analysis.activations.functions import Sine as Sine
from ntk_analysis.activations.functions import absolute as absolute
from ntk_analysis.activations.functions import celu as celu
from ntk_analysis.activations.functions import elu as elu
from ntk_analysis.activations.functions import erf as erf
from ntk_analysis.activations.functions import gelu as gelu
from ntk_analysis.activations.functions import get as get
from ntk_analysis.activations.functions import identity as identity
from ntk_analysis.activations.functions import leaky_relu as leaky_relu
from ntk_analysis.activations.functions import piecewise_linear as piecewise_linear
from ntk_analysis.activations.functions import relu as relu
from ntk_analysis.activations.functions import relu6 as relu6
from ntk_analysis.activations.functions import selu as selu
from ntk_analysis.activations.functions import sigmoid as sigmoid
from ntk_analysis.activations.functions import silu as silu
from ntk_analysis.activations.functions import sine as sine
from ntk_analysis.activations.functions import softplus as softplus
from ntk_analysis.activations.functions import softsign as softsign
from ntk_analysis.activations.functions import tanh as tanh
