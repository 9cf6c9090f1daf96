"""Devices against each other: random cases, the first divergence."""
