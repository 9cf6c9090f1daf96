"""Boards: the accelerator with on-chip memory and a host link, ready for a bitstream."""
