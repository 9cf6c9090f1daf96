"""The accelerator with a microprogram for control: small, slow, and the same results from the same descriptors."""
