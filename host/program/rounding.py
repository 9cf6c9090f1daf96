"""The rounding shift that all of the accelerator's arithmetic is built on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def shift_half_up(x: npt.NDArray[np.integer], s: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """`(x + (1 << (s-1))) >> s`, or `x` where s is 0: division by `2**s`, ties toward +infinity; does not wrap.

    Parameters
    ----------
    x : integer array, of at most 62 bits
    s : integer array that broadcasts with it, 0 or more
    """
    s = np.asarray(s, np.int64)
    half = np.where(s > 0, np.int64(1) << np.maximum(s - 1, 0), 0)
    return (x.astype(np.int64) + half) >> s
