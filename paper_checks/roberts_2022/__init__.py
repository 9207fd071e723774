"""Activations that are critical at one variance only."""

from ..contract import Paper

PAPER = Paper(
    name="Roberts et al. 2022",
    title="The Principles of Deep Learning Theory",
    authors="Daniel A. Roberts, Sho Yaida, Boris Hanin",
    year=2022,
    arxiv="2106.10165",
    venue="Cambridge University Press",
    claims=("half_stable_points",),
    slow=("half_stable_points",),
)
