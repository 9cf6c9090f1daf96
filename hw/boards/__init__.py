"""Boards that open tools can build for: their pads, their clock generators, and the top level that goes onto them."""
