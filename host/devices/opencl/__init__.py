"""The `opencl` device: descriptors executed by an OpenCL kernel, from source or from a board's binary."""
