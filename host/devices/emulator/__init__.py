"""The emulator: compiled kernels that give the accelerator's bytes at the speed of a float forward pass."""
