"""What tests have to tell beside passing, and the order of their files where several workers share them."""

import pytest
from hypothesis import HealthCheck, settings

# An example that takes long beside a busy neighbour is not a fault.
settings.register_profile("beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside others")

# Longest first, so that all workers end together; then what else runs Snakemake, then the others, in pytest's order.
LONGEST = ("test_on_slurm", "test_tiny_study", "test_reproducible", "test_prefetch", "test_readme")


def pytest_collection_modifyitems(config, items):
    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), item.get_closest_marker("workflow") is None

    # The workers collect, not the process that started them.
    if hasattr(config, "workerinput"):
        items.sort(key=place)


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "told" and report.when == "call":
                terminalreporter.write_line(text)
