"""The device contract as a suite, which any backend runs through: `redline conformance DEVICE`."""
