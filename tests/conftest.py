"""Settings that every test shares."""

from __future__ import annotations

import torch

# One thread a process: the tests run in one process per core.
torch.set_num_threads(1)
