"""From a Program and a batch to descriptors, an on-chip allocation and a memory map, and what they cost."""
