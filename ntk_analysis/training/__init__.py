"""Training of finite networks: MimicNorm's parts for any model, the paper's models, and how they learn.

The packages `memory` and `sweep` are imported on first use.
"""

import importlib
from typing import Any

from ntk_analysis.training.along import along_states as along_states
from ntk_analysis.training.along import diagnose_run as diagnose_run
from ntk_analysis.training.centering import center as center
from ntk_analysis.training.centering import center_weights as center_weights
from ntk_analysis.training.centering import selected as selected
from ntk_analysis.training.conversion import Report as Report
from ntk_analysis.training.conversion import mimic as mimic
from ntk_analysis.training.dataset import Dataset as Dataset
from ntk_analysis.training.dataset import hold_out as hold_out
from ntk_analysis.training.dataset import load_dataset as load_dataset
from ntk_analysis.training.initialization import VGG_GAIN as VGG_GAIN
from ntk_analysis.training.initialization import Centering as Centering
from ntk_analysis.training.initialization import centered_init as centered_init
from ntk_analysis.training.initialization import centering_mask as centering_mask
from ntk_analysis.training.initialization import he_normal as he_normal
from ntk_analysis.training.initialization import torch_default as torch_default
from ntk_analysis.training.loop import Run as Run
from ntk_analysis.training.loop import State as State
from ntk_analysis.training.loop import Trainer as Trainer
from ntk_analysis.training.loop import epoch_key as epoch_key
from ntk_analysis.training.loop import fit as fit
from ntk_analysis.training.metrics import Epoch as Epoch
from ntk_analysis.training.metrics import Metrics as Metrics
from ntk_analysis.training.models import MODELS as MODELS
from ntk_analysis.training.models import build as build
from ntk_analysis.training.module_axes import fan_in_axes as fan_in_axes
from ntk_analysis.training.normalization import NORMALIZATIONS as NORMALIZATIONS
from ntk_analysis.training.normalization import LastBatchNorm as LastBatchNorm
from ntk_analysis.training.normalization import SkipScale as SkipScale
from ntk_analysis.training.recipe import Recipe as Recipe


def __getattr__(name: str) -> Any:
    if name in ("memory", "sweep"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
