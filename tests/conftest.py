"""The order of the files: those that run whole notebooks first, so that the processes of `isa test` end together; the tests that need a network are left out; no test sees the figures of another, and no test is timed."""
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from hypothesis import settings

FIRST = ("test_real", "test_tutorials", "test_batch", "test_training", "test_mapping")


settings.register_profile("shared", deadline=None)  # machines are shared and noisy
settings.load_profile("shared")


def pytest_configure(config):
    config.addinivalue_line("markers", "live: asks the real services (pytest -m live); skipped otherwise")


def pytest_collection_modifyitems(config, items):
    if "live" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("live"):
                item.add_marker(pytest.mark.skip(reason="asks the real services: pytest -m live"))
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(Path(item.path).stem, len(FIRST)))


@pytest.fixture(autouse=True)
def no_figure_left():
    """Close every figure after a test: which tests a process of `isa test` has run before is chance."""
    yield
    plt.close("all")
