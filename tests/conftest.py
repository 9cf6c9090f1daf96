"""Settings that every test shares."""

from __future__ import annotations

import signal

import torch

# One thread a process: the tests run in one process per core.
torch.set_num_threads(1)

# A shell starts background jobs with SIGINT ignored, and what it starts inherits that: the tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
