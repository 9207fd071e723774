"""What a network's tangent kernel and its phase say about training it: for any pure function f(params, x).

The phase in mean-field theory (Poole et al. 2016; Schoenholz et al. 2017) is the sign of chi_1 - 1, chi_1 being the
factor by which the square of an infinitesimal difference of two inputs grows per layer, at the variance that the layers
settle at. Ordered: differences die, all inputs come to the same output. Chaotic: they grow until outputs have forgotten
how alike their inputs were. The tangent kernel follows (Xiao et al. 2020): ordered, it tends to one number times 11^T,
an outlier that leaves the rest behind; chaotic, its diagonal outgrows all else, condition number 1; critical, entries
off the diagonal tend to a fraction of it (1/3 for smooth activations, 1/4 for ReLU).

A given function has no layers to look into, so this is measured end to end, over N inputs of d features:
    gain G = (|J|_F^2 / sum |f|^2) (sum |x|^2 / (N d)),     J the Jacobian of the outputs by the inputs,
which is the growth of a small perturbation's square relative to that of the signal itself, whatever the units of inputs
and outputs; 1 for a linear map. Layers are counted on the program: the longest chain of matrix products and
convolutions that the input passes through, of which the first is no layer of mean-field theory, for no activation
stands before it. The estimate of ln chi_1 is ln G / layers.

Its error is that of the draw: networks with the same weights in another order (each array of parameters shuffled) are
new draws where weights are independent and alike, as at initialisation. Where the network's own ln G is one of theirs,
the estimate is the mean over all of them; where it is not, it is the network's own, with the deviation of one draw.
`verdict_of` states the rule and its thresholds.

What 12 layers can tell: of 60 draws each of tanh networks of width 128, those with ln chi_1 = -.28 were all ordered,
those with ln chi_1 = .10 all chaotic, and those on the edge of chaos all critical; of He's ReLU 55 were critical and 5
not decidable. At width 32 no draw was wrong either, but 32 of the 60 of He's ReLU were not decidable.

Limits: a finite depth (what happens once, at the first or last layer or while the variance settles, counts like a
factor of 2), one draw, these inputs. Without biases a homogeneous activation (ReLU) keeps correlations' fate whatever
its gain: it is critical here, while chi_1 = w_var/2 counts the signal's own vanishing, reported beside it. Residual
networks have a chi_1 that tends to 1 with depth. In a trained network the shuffles say how much chance would move a
network of such weights, and the report says where the network itself stands outside of that.
"""

from ntk_analysis.diagnosis.along_training import AlongTraining as AlongTraining
from ntk_analysis.diagnosis.along_training import Checkpoint as Checkpoint
from ntk_analysis.diagnosis.along_training import diagnose_along as diagnose_along
from ntk_analysis.diagnosis.correlations import LayerCorrelations as LayerCorrelations
from ntk_analysis.diagnosis.growth import Growth as Growth
from ntk_analysis.diagnosis.loading import load_network as load_network
from ntk_analysis.diagnosis.measurement import diagnose as diagnose
from ntk_analysis.diagnosis.products import products_in_a_row as products_in_a_row
from ntk_analysis.diagnosis.report import Diagnosis as Diagnosis
from ntk_analysis.diagnosis.shares import Shares as Shares
from ntk_analysis.diagnosis.verdict import VERDICTS as VERDICTS
from ntk_analysis.diagnosis.verdict import Verdict as Verdict
from ntk_analysis.diagnosis.verdict import verdict_of as verdict_of
