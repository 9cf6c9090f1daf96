"""Per-output-channel parameter records, as they lie in memory: bias and requantisation shift."""

from __future__ import annotations

import numpy as np
from amaranth.lib import data

PARAM_BYTES = 8

DTYPE = np.dtype({"names": ["bias", "shift"], "formats": ["<i4", "u1"], "offsets": [0, 4], "itemsize": PARAM_BYTES})
"""numpy dtype of one channel's record; a layer has `[M/LANES][LANES]` of them."""

LAYOUT = data.StructLayout({"bias": 32, "shift": 5, "reserved": 27})
"""Amaranth layout of one channel's record. `shift` is 0 to 31."""

MAX_SHIFT = 31
