"""A lock file: opened without following a link and without touching what is in it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A pipe in the lock's place must not block, and a link must not lead elsewhere.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock, which ends with the process, however that ends; the file stays.

    Parameters
    ----------
    path : Path
        Made if it is not there; its folder must be.
    wait : bool
        Wait for whoever holds it; otherwise raise.

    Raises
    ------
    BlockingIOError
        If another process holds it, and `wait` is false.
    OSError
        If it cannot be opened, or is no plain file: a link, a pipe, a device.
    """
    try:
        descriptor = os.open(path, _FLAGS, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "the lock is a link; delete the link", str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "the lock is not a plain file; delete it", str(path))
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
