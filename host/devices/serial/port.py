"""The operating system's serial port, through pyserial; its errors as DeviceErrors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import serial
from serial.tools import list_ports

from host.devices.device import DeviceError

POLL_S = 0.02
WRITE_S = 5.0


class LineLost(DeviceError):
    """The board has vanished: unplugged, powered off, or silent."""


class Port:
    """An open serial port.

    Parameters
    ----------
    name : str
        A device ("/dev/ttyUSB0", "COM3"), or a URL that pyserial knows ("socket://host:port", "rfc2217://...").
    baud : int

    Raises
    ------
    DeviceError
        If it cannot be opened; says which ports there are.
    """

    def __init__(self, name: str, baud: int) -> None:
        self.name = name
        # Two hosts on one line would take each other's answers.
        alone = {} if "://" in name else {"exclusive": True}
        try:
            self._serial = serial.serial_for_url(name, baud, timeout=POLL_S, write_timeout=WRITE_S, **alone)
        except (serial.SerialException, OSError, ValueError) as error:
            raise DeviceError(
                f"the serial port {name} cannot be opened: {error}; {available()}, it must not be in use by another "
                "program, and on Linux you must be of its group (usually: sudo usermod -aG dialout $USER)"
            ) from error
        # USB adapters hold bytes back for 16 ms otherwise; not every port can be told.
        with suppress(AttributeError, OSError, ValueError, NotImplementedError):
            self._serial.set_low_latency_mode(True)

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (serial.SerialException, OSError, TypeError) as error:
            # pyserial raises a TypeError where another thread has closed the port.
            raise LineLost(
                f"the serial port {self.name} has failed ({error}): the board is unplugged or has lost its power; plug "
                "it in, load its bitstream if it does not keep one, and make the device anew"
            ) from error

    def read(self) -> bytes:
        """What has arrived; waits a little for a first byte, and is empty if none came."""
        with self._lost():
            return bytes(self._serial.read(max(1, self._serial.in_waiting)))

    def write(self, sent: bytes) -> None:
        """Send bytes."""
        with self._lost():
            self._serial.write(sent)

    def forget(self) -> None:
        """Drop what has arrived so far."""
        with self._lost():
            self._serial.reset_input_buffer()

    def close(self) -> None:
        """Close it; harmless a second time."""
        with suppress(serial.SerialException, OSError):
            self._serial.close()


def available() -> str:
    """Serial ports of this machine, in a sentence's part."""
    found = [f"{port.device} ({port.description})" for port in list_ports.comports()]
    return f"there are {', '.join(sorted(found))}" if found else "this machine has no serial ports"
