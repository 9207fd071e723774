"""Ready networks by name, others' models as f(params, x), and the kernels of a network after each depth."""

from ntk_analysis.networks.builders import NORMALIZATIONS as NORMALIZATIONS
from ntk_analysis.networks.builders import READOUTS as READOUTS
from ntk_analysis.networks.builders import SCALES as SCALES
from ntk_analysis.networks.builders import AnyActivation as AnyActivation
from ntk_analysis.networks.builders import convolutional as convolutional
from ntk_analysis.networks.builders import from_equinox as from_equinox
from ntk_analysis.networks.builders import from_linen as from_linen
from ntk_analysis.networks.builders import from_nnx as from_nnx
from ntk_analysis.networks.builders import from_torch as from_torch
from ntk_analysis.networks.builders import fully_connected as fully_connected
from ntk_analysis.networks.builders import residual as residual
from ntk_analysis.networks.parametrization import Parametrization as Parametrization
from ntk_analysis.networks.parametrization import parametrized as parametrized
