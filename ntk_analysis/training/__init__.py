"""Training of finite networks: MimicNorm's parts for any model, the paper's models, and the dynamics put to the test."""

from ntk_analysis.training.centering import center as center
from ntk_analysis.training.centering import center_weights as center_weights
from ntk_analysis.training.centering import selected as selected
from ntk_analysis.training.initialization import VGG_GAIN as VGG_GAIN
from ntk_analysis.training.initialization import Centering as Centering
from ntk_analysis.training.initialization import centered_init as centered_init
from ntk_analysis.training.initialization import centering_mask as centering_mask
from ntk_analysis.training.initialization import he_normal as he_normal
from ntk_analysis.training.mimic import Report as Report
from ntk_analysis.training.mimic import mimic as mimic
from ntk_analysis.training.models import MODELS as MODELS
from ntk_analysis.training.models import build as build
from ntk_analysis.training.normalization import NORMALIZATIONS as NORMALIZATIONS
from ntk_analysis.training.normalization import LastBatchNorm as LastBatchNorm
from ntk_analysis.training.normalization import SkipScale as SkipScale
from ntk_analysis.training.stability import StableRate as StableRate
from ntk_analysis.training.stability import largest_stable_learning_rate as largest_stable_learning_rate
from ntk_analysis.training.stability import loss_curve as loss_curve
