"""How fast kernels of finite networks approach the infinite-width kernel, and what is left of them with depth.

With n the width and K the infinite-width kernel, of finite networks drawn at initialisation one expects
    |Theta - K| / |K| ~ n^(-1/2)     for one draw, fluctuations: a layer averages over n units. That they vanish with n
                                     is in Jacot et al. 2018 (1806.07572).
    |E Theta - K| / |K| ~ n^(-1)     for the mean over draws, bias: what a layer makes of its input is not linear, and
                                     the mean sees the square of the fluctuations. Expansions in 1/n: Dyer & Gur-Ari
                                     2019 (1909.11304).
    Var Theta(x, x) / E[Theta(x, x)]^2 ~ exp(c L/n) - 1   for L hidden ReLU layers: the fluctuation is exponential in
                                     depth over width, and at L ~ n no width is infinite (Hanin & Nica 2019,
                                     1909.05989).
What the theory does not say are the constants, and whether normalisation changes them: these are measured here.
"""

from ntk_analysis.width_study.convergence import RESOLVED, Convergence
from ntk_analysis.width_study.draws import draw_kernels, output_covariance
from ntk_analysis.width_study.laws import PowerLaw, fit_power_law, fluctuation_rate
from ntk_analysis.width_study.statistics import diagonal_fluctuation, squared_bias
from ntk_analysis.width_study.study import WidthStudy, width_study

__all__ = [
    "RESOLVED",
    "Convergence",
    "PowerLaw",
    "WidthStudy",
    "diagonal_fluctuation",
    "draw_kernels",
    "fit_power_law",
    "fluctuation_rate",
    "output_covariance",
    "squared_bias",
    "width_study",
]
