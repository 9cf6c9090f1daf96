"""Delays from place and route: the netlist of an array, its static analysis, and its gate-level simulation."""
