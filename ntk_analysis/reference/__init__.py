"""The one door to neural-tangents: `load` it on current JAX, `translate` networks into it, `compare` kernels with it.

neural-tangents is our reference, not our foundation: nothing else in this library imports it, and everything else works
where it is not installed.
"""

from ntk_analysis.reference.comparison import Comparison as Comparison
from ntk_analysis.reference.comparison import compare as compare
from ntk_analysis.reference.empirical import empirical_ntk_fn as empirical_ntk_fn
from ntk_analysis.reference.loading import load as load
from ntk_analysis.reference.translation import translate as translate
