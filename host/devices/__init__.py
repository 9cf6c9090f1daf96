"""Devices that run a Program, and the runtime that drives them."""
