"""The accelerator as an RTL kernel for Vitis: what AMD's tools need to make a binary for a board of it."""
