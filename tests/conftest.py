"""The order of the files: those that run whole notebooks first, so that the processes of `isa test` end together."""
from pathlib import Path

FIRST = ("test_real", "test_tutorials", "test_batch", "test_training", "test_mapping")


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(Path(item.path).stem, len(FIRST)))
