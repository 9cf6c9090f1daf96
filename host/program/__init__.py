"""The network in the accelerator's integers: layers, fractions, arithmetic."""
