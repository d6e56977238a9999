"""What tests have to tell beside passing, and the order of their files where several workers share them."""

from pathlib import Path

# Longest first, so that all workers end together; the others follow in pytest's order.
LONGEST = ("test_on_slurm", "test_tiny_study", "test_reproducible", "test_prefetch", "test_readme")


def pytest_collection_modifyitems(config, items):
    if config.getoption("numprocesses", None):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(Path(item.path).stem, len(LONGEST)))


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "told" and report.when == "call":
                terminalreporter.write_line(text)
