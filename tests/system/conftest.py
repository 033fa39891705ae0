"""Running systems for the system tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.running import Cortex, CortexFactory

__all__ = ["Cortex", "CortexFactory", "cortex", "cortex_factory"]


@pytest.fixture
def cortex_factory(tmp_path: Path) -> Iterator[CortexFactory]:
    """`cortex_factory(settings=..., models=...)`: one more system, not started; ended after the test."""
    made: list[Cortex] = []

    def make(settings: str = "", models: str = "") -> Cortex:
        made.append(Cortex(tmp_path / f"cortex-{len(made)}", settings=settings, models=models))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def cortex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cortex]:
    """A running system with the demo model, shared by all tests that do not harm it."""
    shared = Cortex(tmp_path_factory.mktemp("cortex"))
    shared.start()
    try:
        shared.wait_ready()
        yield shared
    finally:
        shared.close()
