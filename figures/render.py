"""Makes the files of a figure from its name."""

import importlib
from pathlib import Path
from types import ModuleType

from ntk_analysis.common.progress import Track

from .config import Config
from .store import load, provenance, save
from .style import house_style


def render(name: str, config: Config, folder: Path, track: Track, from_data: Path | None = None) -> dict[str, object]:
    """Computes (or reads) and draws one figure into `folder`; returns the facts printed beside it."""
    module: ModuleType = importlib.import_module(f".{name}", __package__)
    if from_data is None:
        result = module.compute(config, track)
        record = provenance(name, config, result)
    else:
        record, result = load(from_data, name)
    with house_style():
        save(folder, name, record, result, module.draw(result))
    return result.facts
