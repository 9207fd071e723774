"""The fan-in of the arrays of a PyTorch module, whose units come first. It needs the extra `torch`."""

from collections.abc import Iterator

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ntk_analysis.training.fan_in import NOT_SUMMED, FanIn, Path


def fan_ins(module: torch.nn.Module) -> Iterator[tuple[Path, FanIn | None]]:
    """Path and fan-in of each parameter; None where its module is not one of PyTorch's own."""
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            yield tuple(f"{prefix}.{name}".lstrip(".").split(".")), _fan_in(part, name, parameter.ndim)


def _fan_in(part: torch.nn.Module, name: str, axes: int) -> FanIn | None:
    if axes < 2 or isinstance(part, torch.nn.Embedding | torch.nn.LayerNorm):
        return NOT_SUMMED
    match part:
        case torch.nn.Linear() | torch.nn.MultiheadAttention() | torch.nn.RNNBase() | torch.nn.RNNCellBase():
            return FanIn((1,)) if "weight" in name else None
        case _ConvTransposeNd():
            return FanIn((0, *range(2, axes)), True) if part.groups == 1 else None
        case _ConvNd():
            return FanIn(tuple(range(1, axes)), True)
    return None
