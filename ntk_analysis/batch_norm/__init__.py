"""Batch normalisation at finite batch size. Before the activation, exact: NNGP, tangent push-forward, its adjoint.

One neuron sees a batch x ~ N(0, Sigma) of B inputs. Batch normalisation with the biased variance, then phi, make it
    y = phi(xhat),  xhat = sqrt(B) G x / sqrt(|G x|^2 + B eps),  G = I - 11^T/B.
Writing powers of 1/|G x| as Laplace integrals over s leaves Gaussian moments under a damped covariance (the Laplace
trick of Yang et al. 2019, "A Mean Field Theory of Batch Normalization", 1902.08129). With S = G Sigma G and, at each s,
    kappa = s S (I + 2 s S)^-1,  delta = det(I + 2 s S)^(-1/2) exp(-s B eps),  C = G - kappa,  T = G Theta G,
    V_ij = E[phi(z_i) phi(z_j)],  E_ij = E[phi'(z_i) phi'(z_j)],  z ~ N(0, kappa),
    N = (2 b^2 / pi) sqrt(kappa_ii kappa_jj - kappa_ij^2),  P = C T C,  a_i = (P_ii - T_ii) / (2 kappa_ii),
one-dimensional integrals remain for every positively homogeneous phi(x) = a x + b |x|:
    NNGP        = E[y y^T]       = B Int delta V ds/s
    PUSH(Theta) = E[J Theta J^T] = B Int delta { E o P + N o (a 1^T + 1 a^T) + tr(T kappa) V / 2 } ds,  J = dy/dx,
    E[y]        = b (2 B)^(1/2) / pi Int delta sqrt(kappa_ii) ds/s,
`o` the elementwise product. J is not diagonal: batch normalisation couples the batch. phi enters through second moments
only, in which x and |x| do not mix: V = a^2 kappa + b^2 E|z_i||z_j|, E = a^2 + b^2 E[sgn z_i sgn z_j].

The statistics may come from some of the samples: with weights p_i >= 0 of sum 1 (`weights`; 0 for new points behind the
statistics of a training batch), w = p / max(p), c = sum(w) and W = diag(w), everything stays one integral,
    H = I - 1 p^T,  S = H Sigma H^T,  T = H Theta H^T,  kappa = s S (I + 2 s W S)^-1,
    delta = det(I + 2 s W S)^(-1/2) exp(-s c eps),  P = (I - kappa W) T (I - kappa W)^T,
    c in the place of B, and tr(T W kappa W) in that of tr(T kappa).
With S = L L^T + S_rest, L the covariances with the eigenmodes lambda of W^(1/2) S W^(1/2), kappa = s L (1 + 2 s
lambda)^-1 L^T + s S_rest, where S_rest is 0, to the last bit, on the samples with a weight: rounding would grow with s
there. Nothing bounds xhat of new points where the statistics nearly vanish. So at eps = 0, with r the rank of
W^(1/2) S W^(1/2), `push` is finite from r = 3 on for the samples with a weight, from 4 between these and new points
outside of their span, and from 5 between such new points (6 training samples); `nngp` from 1, 2 and 3. What is not
finite for some pair is refused as a whole.

`propagate` takes them all in one pass. Behind the activation, y = BN(phi(x)), no such integrals exist:
`after_activation` samples, and tells the standard error.

Without `weights` the kernel is that of one joint batch of B >= 2 inputs. Separate training and test batches that each
have their own statistics are another kernel, which is not here.

Outside JAX transformations everything is computed and returned in NumPy float64, whatever comes in. Under jit, grad and
vmap the ambient dtype is followed and values cannot be checked: where an error would be raised outside because the rank
is too small or an input lies on the kink of phi, all entries are NaN.
"""

from ntk_analysis.batch_norm.integrals import Propagated as Propagated
from ntk_analysis.batch_norm.kernels import nngp as nngp
from ntk_analysis.batch_norm.kernels import propagate as propagate
from ntk_analysis.batch_norm.kernels import pull as pull
from ntk_analysis.batch_norm.kernels import push as push
from ntk_analysis.batch_norm.kernels import quadrature_error as quadrature_error
from ntk_analysis.batch_norm.large_batch import large_batch_nngp as large_batch_nngp
from ntk_analysis.batch_norm.rules import COARSE as COARSE
from ntk_analysis.batch_norm.rules import FINE as FINE
from ntk_analysis.batch_norm.rules import LARGE_BATCH as LARGE_BATCH
from ntk_analysis.batch_norm.rules import FewNodes as FewNodes
from ntk_analysis.batch_norm.rules import Rule as Rule
from ntk_analysis.batch_norm.rules import rule_error as rule_error
from ntk_analysis.batch_norm.sampling import AfterActivation as AfterActivation
from ntk_analysis.batch_norm.sampling import after_activation as after_activation
