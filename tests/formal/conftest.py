"""What proofs share: the solver's tools, ready to use.

It must not know what is proved.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.formal import tools


@pytest.fixture(scope="session")
def formal_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with yosys, yosys-smtbmc, yosys-witness and boolector."""
    return tools(tmp_path_factory.mktemp("tools"))
