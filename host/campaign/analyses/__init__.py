"""Analyses that the literature shows: where errors are, which bits and layers matter, what protection costs."""
