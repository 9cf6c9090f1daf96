"""Boards that open tools can build for: the accelerator with on-chip memory and a host link, clock generators, pads."""
