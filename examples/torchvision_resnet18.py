"""torchvision's ResNet18 with random weights: `diagnose` takes the PyTorch module itself, and images for it.

`uv run --extra torch ntk-analysis diagnose examples/torchvision_resnet18.py:network`
"""

import numpy as np
import torch
import torchvision

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.networks import from_torch


def network() -> tuple[torch.nn.Module, torch.Tensor]:
    """(module, x), as `ntk-analysis diagnose` takes them; it takes the module in evaluation mode."""
    torch.manual_seed(0)
    digits = load_digits().subset(8, seed=0).images.astype(np.float32)
    images = torch.as_tensor(digits).reshape(8, 1, 8, 8).expand(8, 3, 8, 8)
    x = torch.nn.functional.interpolate(images - images.mean(), size=32, mode="bilinear")
    return torchvision.models.resnet18(num_classes=10), x / x.std()


if __name__ == "__main__":
    kernel = empirical_ntk(*from_torch(*network(), mode="eval"))  # mode="train": of the batch's own statistics
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel):.4g}")
