"""Models of Flax, Linen's and NNX's, as pure functions f(params, x): parameters here, every other state apart.

`networks.from_linen` and `networks.from_nnx` make them.
"""
