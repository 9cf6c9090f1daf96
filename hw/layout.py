"""Data layouts: how feature maps and weights lie in the accelerator's memory.

Features are `[C/VEC][H][W][VEC]`, weights `[M/LANES][C/VEC][KH][KW][LANES][VEC]`, parameters `[M/LANES][LANES]`.
Channels are padded with zeros at the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hw import params

Int8 = npt.NDArray[np.int8]


def ceil_div(a: int, b: int) -> int:
    """Quotient of `a / b`, rounded up."""
    return -(-a // b)


def features_bytes(channels: int, height: int, width: int, vec: int) -> int:
    """Bytes of one image's feature map in memory."""
    return ceil_div(channels, vec) * height * width * vec


def reorder_features(x: Int8, vec: int) -> Int8:
    """NCHW to `[N][C/VEC][H][W][VEC]`.

    Parameters
    ----------
    x : int8 array, shape (N, C, H, W)
    vec : int

    Returns
    -------
    int8 array, shape (N, ceil(C/VEC), H, W, VEC), contiguous
    """
    n, c, h, w = x.shape
    groups = ceil_div(c, vec)
    padded = np.zeros((n, groups * vec, h, w), np.int8)
    padded[:, :c] = x
    return np.ascontiguousarray(padded.reshape(n, groups, vec, h, w).transpose(0, 1, 3, 4, 2))


def recover_features(x: Int8, channels: int) -> Int8:
    """`[N][C/VEC][H][W][VEC]` to NCHW, dropping the padding channels; the inverse of `reorder_features`."""
    n, groups, h, w, vec = x.shape
    return np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3).reshape(n, groups * vec, h, w)[:, :channels])


def output_groups(channels: int, lanes: int, vec: int) -> int:
    """Groups of LANES output channels that the array computes for `channels` channels."""
    return ceil_div(channels, max(lanes, vec)) * max(lanes, vec) // lanes


def pack_params(
    bias: npt.NDArray[np.int32], shift: npt.NDArray[np.integer], lanes: int, vec: int
) -> npt.NDArray[np.void]:
    """Bias and shift per output channel, shape (M,), to records of shape `[M/LANES][LANES]` (dtype `params.DTYPE`)."""
    if shift.size and (int(shift.min()) < 0 or int(shift.max()) > params.MAX_SHIFT):
        raise ValueError(f"shift must be 0 to {params.MAX_SHIFT}, got {int(shift.min())} to {int(shift.max())}")
    records = np.zeros(output_groups(len(bias), lanes, vec) * lanes, params.DTYPE)
    records["bias"][: len(bias)] = bias
    records["shift"][: len(shift)] = shift
    return records.reshape(-1, lanes)
