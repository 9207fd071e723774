"""VGG16 and ResNet18 at CIFAR size in PyTorch, trained as `gpu_throughput` trains them.

Channels last, the step's network compiled, the same augmentation on the card: padded by 4, cropped and mirrored at
random. MimicNorm is weights centered after each step, scalars 1/sqrt(l) at the ends of residual branches, and one batch
norm without affine parameters behind the read-out.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ntk_analysis.training.augmentation import PADDING
from ntk_analysis.training.models.resnet import BLOCKS
from ntk_analysis.training.models.vgg import CHANNELS, CONVS

CLASSES, SIZE = 100, 32


def convolution(inputs: int, units: int, size: int, stride: int, norm: bool, *, bias: bool) -> nn.Sequential:
    """A convolution and its batch norm, if any."""
    conv = nn.Conv2d(inputs, units, size, stride, size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(units)) if norm else nn.Sequential(conv)


class Block(nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """relu(shortcut + scale * branch), the branch two 3 x 3 convolutions."""

    def __init__(self, inputs: int, units: int, stride: int, scale: float, norm: bool) -> None:
        super().__init__()
        self.first = convolution(inputs, units, 3, stride, norm, bias=False)
        self.second = convolution(units, units, 3, 1, norm, bias=False)
        same = stride == 1 and inputs == units
        self.shortcut = nn.Identity() if same else convolution(inputs, units, 1, stride, norm, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(functional.relu(self.first(x), inplace=True))
        return functional.relu(self.shortcut(x) + self.scale * y, inplace=True)


def vgg16(norm: bool, width: int = 64) -> list[nn.Module]:
    """The convolutions of VGG16."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, times in zip(CONVS[16], CHANNELS, strict=True):
        for _ in range(count):
            layers += [convolution(inputs, width * times, 3, 1, norm, bias=True), nn.ReLU(inplace=True)]
            inputs = width * times
        layers.append(nn.MaxPool2d(2))
    return layers


def resnet18(norm: bool, width: int = 64) -> list[nn.Module]:
    """The convolutions of ResNet18."""
    layers: list[nn.Module] = [convolution(3, width, 3, 1, norm, bias=False), nn.ReLU(inplace=True)]
    inputs, number = width, 0
    for stage, count in enumerate(BLOCKS[18]):
        for place in range(count):
            number += 1
            units, stride = width * 2**stage, 2 if stage and not place else 1
            layers.append(Block(inputs, units, stride, 1.0 if norm else number**-0.5, norm))
            inputs = units
    return layers


def mlp(norm: bool) -> list[nn.Module]:
    """Five hidden layers of 512 units, in which small sizes are tried."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (3 * SIZE**2, *[512] * 4):
        layers += [nn.Linear(inputs, 512), *[nn.BatchNorm1d(512)] * norm, nn.ReLU()]
    return layers


NETWORKS = {"vgg16": vgg16, "resnet18": resnet18, "mlp": mlp}


def passes(network: str, normalization: str, batch: int, steps: int, dtype: str) -> Iterator[None]:
    """Trains on noise, and yields after each `steps` steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    mimic = normalization == "mimic_norm"
    layers, images = NETWORKS[network](not mimic), network != "mlp"
    pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if images else []
    last: list[nn.Module] = [nn.BatchNorm1d(CLASSES, affine=False)] if mimic else []
    model = nn.Sequential(*layers, *pool, nn.Linear(512, CLASSES), *last).to(device, memory_format=torch.channels_last)
    # the first layer sees images, not activations: it stays as it is
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1][1:] if mimic else []
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    compiled = torch.compile(model) if device.type == "cuda" else model
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (batch * steps, 3, SIZE, SIZE), np.uint8)).to(device)
    labels = torch.from_numpy(rng.integers(0, CLASSES, batch * steps)).to(device)
    while True:
        for chosen in torch.randperm(batch * steps, device=device).reshape(steps, batch):
            x = crop_and_flip(pixels[chosen]) if images else pixels[chosen]
            x = ((x.float() - 127.5) / 73.6).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = functional.cross_entropy(compiled(x).float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for weight in weights:
                    weight.sub_(weight.mean(tuple(range(1, weight.ndim)), keepdim=True))
        if not math.isfinite(loss.item()):  # which waits for the card
            raise FloatingPointError(f"the loss of {network} became {loss.item()}")
        yield


def crop_and_flip(images: Tensor) -> Tensor:
    """A random window of each padded image (n, c, h, w), half of them mirrored."""
    n, device = len(images), images.device
    padded = functional.pad(images, [PADDING] * 4)
    rows, columns = (
        torch.randint(0, 2 * PADDING + 1, (n, 1), device=device) + torch.arange(SIZE, device=device) for _ in range(2)
    )
    columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns, columns.flip(1))
    numbers = torch.arange(n, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
