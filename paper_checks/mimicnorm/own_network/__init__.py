"""The paper's questions to a network of the user's own: (f, params, x), in the form of the claims.

Nothing is on record of such a network: its checks have verdicts, and no verdict to compare them with.
"""
