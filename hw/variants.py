# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""Which accelerator a configuration asks for."""

from __future__ import annotations

from hw.accelerator import Accelerator
from hw.config import Config, ConfigError
from hw.microcode.accelerator import MicrocodedAccelerator


def accelerator(config: Config, *, opencl: bool = False) -> Accelerator | MicrocodedAccelerator:
    """The accelerator of a configuration; all have the same ports.

    Parameters
    ----------
    config : Config
    opencl : bool
        See Accelerator.

    Raises
    ------
    ConfigError
        If it cannot be built for OpenCL.
    """
    if config.control == "pipeline":
        return Accelerator(config, opencl=opencl)
    if opencl:
        raise ConfigError(f'an RTL kernel for OpenCL has control="pipeline", not {config.control!r}')
    return MicrocodedAccelerator(config)
