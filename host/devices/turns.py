"""Turns on a device: one thread at a time writes, launches and reads."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from host.devices.device import Device


@dataclass
class Turn:
    """Who may use a device now, and whose data lie in its memory.

    Attributes
    ----------
    lock : RLock
        Held from the first write to the last read of a forward pass.
    user : object
        Token of the `Runtime` whose weights lie in the device's memory; another one must write its own first.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    user: object = None


_turns: WeakKeyDictionary[Device, Turn] = WeakKeyDictionary()
_finding = threading.Lock()


def turn_of(device: Device) -> Turn:
    """The turn of a device; the same for all that use it."""
    with _finding:
        found = _turns.get(device)
        if found is None:
            found = _turns[device] = Turn()
        return found
