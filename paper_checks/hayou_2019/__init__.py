"""How fast correlations tend to 1 on the edge of chaos: kinked activations against smooth ones."""

from ..contract import Paper

PAPER = Paper(
    name="Hayou et al. 2019",
    title="On the Impact of the Activation Function on Deep Neural Networks Training",
    authors="Soufiane Hayou, Arnaud Doucet, Judith Rousseau",
    year=2019,
    arxiv="1902.06853",
    venue="ICML 2019",
    claims=("relu_correlation_rate", "smooth_correlation_rate", "edge_of_elu", "ntk_over_depth"),
    slow=("relu_correlation_rate", "smooth_correlation_rate", "edge_of_elu", "ntk_over_depth"),
)
