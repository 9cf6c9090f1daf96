"""Train neural networks on the accelerator that will run them, while it makes errors: the names users need."""

from __future__ import annotations
