"""Layers: each a finite network beside its infinite-width kernel."""

from ntk_analysis.layers.activation import Activation as Activation
from ntk_analysis.layers.base import Layer as Layer
from ntk_analysis.layers.base import SingleLayer as SingleLayer
from ntk_analysis.layers.branches import Identity as Identity
from ntk_analysis.layers.branches import Parallel as Parallel
from ntk_analysis.layers.combinators import Repeat as Repeat
from ntk_analysis.layers.combinators import Residual as Residual
from ntk_analysis.layers.combinators import ResidualChain as ResidualChain
from ntk_analysis.layers.combinators import Serial as Serial
from ntk_analysis.layers.convolution import Conv as Conv
from ntk_analysis.layers.dense import Dense as Dense
from ntk_analysis.layers.dropout import Dropout as Dropout
from ntk_analysis.layers.dropout import with_new_masks as with_new_masks
from ntk_analysis.layers.local_convolution import ConvLocal as ConvLocal
from ntk_analysis.layers.normalization import BatchNorm as BatchNorm
from ntk_analysis.layers.normalization import GroupNorm as GroupNorm
from ntk_analysis.layers.normalization import LastBatchNorm as LastBatchNorm
from ntk_analysis.layers.normalization import LayerNorm as LayerNorm
from ntk_analysis.layers.normalization import RMSNorm as RMSNorm
from ntk_analysis.layers.readout import AvgPool as AvgPool
from ntk_analysis.layers.readout import Flatten as Flatten
from ntk_analysis.layers.readout import GlobalAvgPool as GlobalAvgPool
from ntk_analysis.layers.readout import GlobalSumPool as GlobalSumPool
from ntk_analysis.layers.readout import SumPool as SumPool
from ntk_analysis.layers.transposed_convolution import ConvTranspose as ConvTranspose
