"""What is installed on request: the extras of pyproject.toml that other frameworks need."""

EXTRAS = {"torch": "torch", "torchvision": "torch", "torchax": "torch", "equinox": "equinox"}
"""The extra that brings a package."""


def how_to_install(error: ImportError) -> str:
    """Text that follows an error's message: the extra that brings the missing package; empty if none does."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    return "" if extra is None else f": uv sync --extra {extra}, or pip install 'ntk-analysis[{extra}]', brings it"
