"""Empirical kernels: NTK and NNGP of any finite f(params, x), in tiles that fit into memory."""

from ntk_analysis.empirical.by_group import empirical_ntk_by as empirical_ntk_by
from ntk_analysis.empirical.by_group import group_names as group_names
from ntk_analysis.empirical.estimate import Estimate as Estimate
from ntk_analysis.empirical.kernels import EmpiricalKernel as EmpiricalKernel
from ntk_analysis.empirical.kernels import empirical_nngp as empirical_nngp
from ntk_analysis.empirical.kernels import empirical_ntk as empirical_ntk
from ntk_analysis.empirical.opening import open_kernel as open_kernel
from ntk_analysis.empirical.plans import TilePlan as TilePlan
from ntk_analysis.empirical.projected import ProjectedKernel as ProjectedKernel
from ntk_analysis.empirical.projected import projected_ntk as projected_ntk
from ntk_analysis.empirical.tiles import Tiles as Tiles
from ntk_analysis.empirical.tiles import plan as plan
from ntk_analysis.empirical.vector_products import VectorProducts as VectorProducts
from ntk_analysis.empirical.vector_products import vector_products as vector_products
from ntk_analysis.stores.cluster import Cluster as Cluster
from ntk_analysis.stores.devices import Devices as Devices
