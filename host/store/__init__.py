"""Files that are written in one step and checked when read."""
