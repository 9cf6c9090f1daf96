"""Gateware: the accelerator, its descriptor format, register map, data layouts and fault instrumentation."""
