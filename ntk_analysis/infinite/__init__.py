"""The way from inputs to the NNGP and NTK of an infinitely wide network."""

from ntk_analysis.infinite.kernel import Kernel as Kernel
from ntk_analysis.infinite.kernel import divided as divided
from ntk_analysis.infinite.kernels import infinite_kernel as infinite_kernel
from ntk_analysis.infinite.planning import KernelPlan as KernelPlan
from ntk_analysis.infinite.planning import plan as plan
from ntk_analysis.infinite.store_plan import StorePlan as StorePlan
from ntk_analysis.infinite.stored import StoredKernel as StoredKernel
from ntk_analysis.infinite.tiling import plan_store as plan_store
