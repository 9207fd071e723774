"""Normalisations by name: one table for kernels, mean field, trained networks, command line and figures."""

from typing import NamedTuple


class Row(NamedTuple):
    """One normalisation.

    Attributes:
        infinite: the name of its hidden layers in `networks` and `meanfield`; None where no kernel is known.
        trained: the name in `training`, under which runs are recorded; None where no model has it.
        last: whether a batch norm without parameters stands on the outputs.
        aliases: further names.
    """

    infinite: str | None
    trained: str | None
    last: bool = False
    aliases: tuple[str, ...] = ()


TABLE = {
    "none": Row("none", "none", aliases=("straight",)),
    "weight_mean": Row("weight_mean", "weight_mean", aliases=("weight_centering", "weight_centring")),
    "weight_standardization": Row(
        "weight_standardization", "weight_standardization", aliases=("weight_standardisation",)
    ),
    "batch": Row("batch", "batch_norm", aliases=("batch_norm", "bn")),
    "layer": Row("layer", "layer_norm", aliases=("layer_norm", "ln")),
    "layer_post": Row("layer_post", None),
    "group": Row(None, "group_norm", aliases=("group_norm", "gn")),
    "last_bn": Row("none", "last_bn", last=True, aliases=("last_batch_norm",)),
    "mimic": Row("weight_mean", "mimic_norm", last=True, aliases=("mimic_norm", "mimicnorm")),
    "skip_init": Row(None, "skip_init", aliases=("skipinit",)),
    "fixup": Row(None, "fixup"),
}
RUNNING_VARIANCES = ("unbiased", "biased")
"""Variances of a batch that batch norm's running variance averages: with Bessel's correction, as in PyTorch, or without
it, as in Flax."""
INFINITE = tuple(name for name, row in TABLE.items() if row.infinite is not None)
TRAINED = tuple(name for name, row in TABLE.items() if row.trained is not None)
_NAMES = {alias: name for name, row in TABLE.items() for alias in (name, *row.aliases)}


def row_of(name: str) -> Row:
    """The row of a name or alias; capitals, hyphens and spaces do not matter.

    Raises:
        ValueError: no row has this name; the message lists the names.
    """
    return TABLE[_canonical(name, tuple(TABLE))]


def infinite_name(name: str) -> str:
    """The name of the hidden layers' normalisation in `networks` and `meanfield`; ValueError where there is none."""
    return str(TABLE[_canonical(name, INFINITE)].infinite)


def trained_name(name: str) -> str:
    """The name in `training`; ValueError where no model has it."""
    return str(TABLE[_canonical(name, TRAINED)].trained)


def _canonical(name: str, possible: tuple[str, ...]) -> str:
    key = _NAMES.get(str(name).strip().lower().replace("-", "_").replace(" ", "_"))
    if key not in possible:
        what = f"unknown normalization {name!r}" if key is None else f"normalization {name!r} is not known here"
        raise ValueError(f"{what}: choose one of {', '.join(possible)}")
    return key
