"""A small network, a card, a store and an engine on them, for tests of the engine; nothing of it is a stand-in.

It must not know how the engine is built inside.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.engine import Net, World


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Net]:
    """The small network compiled for the presets `tiny` (4 cores) and `u200` (16 cores)."""
    folder = tmp_path_factory.mktemp("nets")
    return {name: Net.compiled(folder, name) for name in ("tiny", "u200")}


@pytest.fixture
def make(tmp_path: Path, nets: dict[str, Net]) -> Iterator[Callable[..., World]]:
    """Makes worlds in one state folder, and stops what runs when the test is over."""
    made: list[World] = []

    def begin(preset: str = "tiny", **options: object) -> World:
        world = World(tmp_path / "state", nets[preset], **options)  # type: ignore[arg-type]
        made.append(world)
        return world

    yield begin
    for world in made:
        world.close()
