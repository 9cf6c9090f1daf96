"""PipeCNN's arithmetic (Wang et al. 2017; its `conv_pipe.cl`), including where it wraps.

With `rhu(x, k) = (x + (1 << (k-1))) >> k`, `acc` without the bias and `r = (acc >> (s-1)) + 1`:
`r >= 256 -> 127`; `r < -256 -> -128`; else `wrap8(rhu(acc, s) + rhu(bias, frac_w - frac_out))`, bias int8 at `frac_w`.

`rhu(acc, s)` is `r >> 1`, so the two tests on `r` are tests on `rhu(acc, s)`: above 127, and below -128. The bias' term
does not depend on `acc`: the host stores it rounded, where the plain arithmetic stores the bias itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from host.program.rounding import shift_half_up

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]


def stored_bias(bias: Int32, weight_frac: npt.NDArray[np.integer], out_frac: int) -> Int32:
    """The bias as the accelerator adds it: `rhu(bias, weight_frac - out_frac)`.

    Parameters
    ----------
    bias : int32 array, shape (M,)
        int8 values at `weight_frac`.
    weight_frac : integer array, shape (M,)
        More than `out_frac`, wherever the bias is not zero.
    out_frac : int
    """
    k = np.maximum(np.asarray(weight_frac, np.int64) - out_frac, 1)
    return shift_half_up(bias, k).astype(np.int32)


def requantise(acc: Int32, shift: npt.NDArray[np.integer], bias: Int32, relu: bool, upper: int = 127) -> Int8:
    """Accumulators to outputs.

    Parameters
    ----------
    acc : int32 array, shape (..., M, H, W)
        Without the bias.
    shift : integer array, shape (M,), 1 to 31
    bias : int32 array, shape (M,)
        As stored (`stored_bias`).
    relu : bool
    upper : int
        Largest output, 0 to 127.

    Returns
    -------
    int8 array of the shape of `acc`
    """
    rounded = shift_half_up(acc, shift[:, None, None])
    wrapped = (rounded + bias.astype(np.int64)[:, None, None] + 128) % 256 - 128
    value = np.where(rounded > 127, 127, np.where(rounded < -128, -128, wrapped))
    return np.clip(value, 0 if relu else -128, upper).astype(np.int8)
