import pytest
import torch


@pytest.fixture
def seeded() -> None:
    """The same random numbers for every test."""
    torch.manual_seed(0)
