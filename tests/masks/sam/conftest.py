"""One compute thread for every test here, because masks are compared to the last bit."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
