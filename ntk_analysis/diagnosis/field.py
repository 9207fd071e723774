"""Mean-field theory of a network of our layers, where it repeats one block."""

from ntk_analysis import meanfield
from ntk_analysis.empirical.functions import Network
from ntk_analysis.layers import (
    Activation,
    BatchNorm,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    GroupNorm,
    Layer,
    LayerNorm,
    RMSNorm,
)
from ntk_analysis.layers.base import SingleLayer
from ntk_analysis.meanfield import BatchNormField, MeanField

WEIGHTS = Dense | Conv | ConvLocal


def field_of(f: Network, batch_size: int) -> tuple[MeanField | BatchNormField | None, str]:
    """Mean-field theory of the one block that a chain of our layers repeats; or None and the reason."""
    if not isinstance(f, Layer):
        return None, "not available: a plain function does not say what it is made of"
    singles = list(f.in_order())
    behind = [index for index, layer in enumerate(singles) if isinstance(layer, Activation)]
    weights = {
        (layer.w_var, layer.b_var, layer.center or layer.standardize)
        for layer in singles[min(behind, default=0) :]
        if isinstance(layer, WEIGHTS)
    }
    functions = {layer.activation for layer in singles if isinstance(layer, Activation)}
    others = [layer for layer in singles if not isinstance(layer, WEIGHTS | Activation | BatchNorm)]
    if len(weights) != 1 or len(functions) != 1 or not all(isinstance(layer, SingleLayer) for layer in others):
        return None, "not available: the network is no chain of one repeated block"
    if any(layer.masks_inputs for layer in others):
        return None, "not available with dropout"
    if any(isinstance(layer, ConvTranspose) for layer in others):
        return None, "not available with a transposed convolution, whose outputs see different numbers of inputs"
    if any(isinstance(layer, LayerNorm | RMSNorm | GroupNorm) for layer in others):
        return None, "not available with a normalisation of each input"
    ((w_var, b_var, centered),), (phi,) = weights, functions
    batch = any(isinstance(layer, BatchNorm) for layer in singles)
    normalization = "batch" if batch else "weight_mean" if centered else "none"
    size = {"batch_size": batch_size} if batch else {}
    try:
        return meanfield.analyse(phi, normalization=normalization, w_var=w_var, b_var=b_var, **size), ""
    except (NotImplementedError, ValueError) as refusal:
        return None, f"not available: {refusal}"
