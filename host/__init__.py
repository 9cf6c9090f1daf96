"""PyTorch side: quantise, compile, devices, faults, retraining, protection, and the command line."""
