"""Training on a device: autograd, twins, retraining, protection."""
