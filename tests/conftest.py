"""One thread and fixed seeds for every test; `--shapes` checks the shape annotations while they run."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shapes",
        action="store_true",
        help="check the shape and dtype of every annotated argument and result at run time",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if config.getoption("--shapes"):
        from jaxtyping import install_import_hook

        # Before the packages are imported: what is already imported stays unchecked.
        install_import_hook(["titans_kernels", "titans_core"], "beartype.beartype")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
