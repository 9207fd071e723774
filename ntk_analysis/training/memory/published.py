"""The memory that the MimicNorm paper reports (2010.09278, Tables 1 and 3)."""

from collections.abc import Mapping
from typing import NamedTuple

from ntk_analysis.common.normalizations import trained_name

WHY = """\
kept: arrays handed from forward to backward pass, before compilation; distinct: without constants and copies; training:
kept, images, and three times the parameters (themselves, gradients, momentum).
Why the paper's savings are other numbers: it reports all that PyTorch holds on a GPU. That has cuDNN's workspaces, the
CUDA context and what the allocator caches too, much the same whatever the normalisation: its percentages are of a
larger sum. PyTorch's batch norm keeps one array where JAX's keeps two. XLA computes some of ours again, and stores no
constants: --compile asks it."""


class Published(NamedTuple):
    """A row of a table.

    Attributes:
        model: our name of the network. The authors' code says which SqueezeNet the paper takes, and how wide its
            ShuffleNetV2 is in Table 1: 1.0 both.
        batch: number of images in a step.
        megabytes: total GPU memory by normalisation, in MB.
    """

    model: str
    batch: int
    megabytes: Mapping[str, int]

    def saving(self, normalization: str) -> float:
        """Percent of memory saved against batch norm; raises KeyError for what the paper does not report."""
        return 100 * (1 - self.megabytes[trained_name(normalization)] / self.megabytes["batch_norm"])


TABLE_1 = (
    Published("vgg11", 256, {"batch_norm": 2971, "mimic_norm": 2851, "none": 2831}),
    Published("vgg16", 256, {"batch_norm": 3745, "mimic_norm": 3489, "none": 3469}),
    Published("resnet18", 256, {"batch_norm": 4447, "mimic_norm": 4157, "fixup": 4743}),
    Published("resnet50", 128, {"batch_norm": 8533, "mimic_norm": 7533, "fixup": 10283}),
    Published("squeezenet1_0", 256, {"batch_norm": 3687, "mimic_norm": 2693}),
    Published("shufflenet_v2_x1_0", 256, {"batch_norm": 3915, "mimic_norm": 3141}),
)
"""CIFAR-100, 100 classes."""
TABLE_3 = (
    Published("vgg16", 256, {"batch_norm": 62162, "mimic_norm": 56410, "none": 56388}),
    Published("resnet18", 256, {"batch_norm": 8057, "mimic_norm": 5603}),
    Published("resnet50", 256, {"batch_norm": 27083, "mimic_norm": 22489, "fixup": 29267}),
    Published("resnet101", 256, {"batch_norm": 37168, "mimic_norm": 30363}),
    Published("shufflenet_v2_x0_5", 256, {"batch_norm": 4385, "mimic_norm": 3603}),
)
"""ImageNet, 1000 classes."""
