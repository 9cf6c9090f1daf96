"""Fault campaigns: many trials, each a fault plan on a network and some images, with sound statistics."""
