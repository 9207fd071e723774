"""What is missing is named with the extra that brings it."""

import sys

import numpy as np
import pytest

from ntk_analysis import networks
from ntk_analysis.diagnosis import load_network

CURES = {
    "torch": r"uv sync --extra torch, or pip install 'ntk-analysis\[torch\]'",
    "equinox": r"uv sync --extra equinox, or pip install 'ntk-analysis\[equinox\]'",
}


@pytest.mark.parametrize("name", CURES)
def test_a_missing_extra_is_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"ntk_analysis.{name}_networks", raising=False)
    monkeypatch.delattr(f"ntk_analysis.{name}_networks", raising=False)
    with pytest.raises(ImportError, match=CURES[name]):
        getattr(networks, f"from_{name}")(None, np.ones((2, 3)))
    file = tmp_path / f"needs_{name}.py"
    file.write_text(f"import {name}\ndef network():\n    pass\n")
    with pytest.raises(ImportError, match=CURES[name]):
        load_network(f"{file}:network")
    file.write_text(f"def network():\n    import {name}\n")
    with pytest.raises(ImportError, match=CURES[name]):
        load_network(f"{file}:network")
