"""Fault events, as the saboteurs read them from memory.

Two lists, each sorted by (job, slot): one for the accumulators, one for the job's final output. The host encodes a
FaultPlan into these; the gateware XORs `1 << bit` at the named place.
"""

from __future__ import annotations

import numpy as np
from amaranth.lib import data

EVENT_BYTES = 16

DTYPE = np.dtype(
    {
        "names": ["slot", "job", "lane", "bit"],
        "formats": ["<u4", "<u4", "<u2", "<u2"],
        "offsets": [0, 4, 8, 10],
        "itemsize": EVENT_BYTES,
    }
)
"""numpy dtype of one event.

job
    Position of the descriptor in the launch, from 0. For the feature list, of jobs whose outputs join (`Flag.MORE`,
    `Flag.RESUME`): of the first of them, and slots count on through them all.
slot
    For the accumulator list: number of steps the job executed before this one, in the job's order
    (output group, image, output row, output column, step). The flip lands in the accumulator register after that step.
    For the feature list: number of final outputs (after pooling; one output is LANES channels of one pixel) the job
    produced before this one, in the order (output group, image, row, column).
lane
    Which of the LANES channels.
bit
    0 to 31 (accumulator) or 0 to 7 (feature).
"""

LAYOUT = data.StructLayout({"slot": 32, "job": 32, "lane": 16, "bit": 16, "reserved": 32})
