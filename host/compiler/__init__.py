"""From a PyTorch module to a Program."""
