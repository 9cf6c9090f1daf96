"""Boards that the package is written for: their Vitis platforms, and where their memory is."""

from __future__ import annotations

from typing import NamedTuple


class Board(NamedTuple):
    """An Alveo board.

    Attributes
    ----------
    name : str
    platform : str
        Vitis' development platform.
    memory : str
        What `m_axi_gmem` is connected to. Boards with HBM: the first four of its banks, of 256 MB each.
    """

    name: str
    platform: str
    memory: str

    @property
    def has_hbm(self) -> bool:
        """Whether its memory is in banks of 256 MB."""
        return self.memory.startswith("HBM")


BOARDS = {
    board.name: board
    for board in (
        Board("u200", "xilinx_u200_gen3x16_xdma_2_202110_1", "DDR[0]"),
        Board("u250", "xilinx_u250_gen3x16_xdma_4_1_202210_1", "DDR[0]"),
        Board("u280", "xilinx_u280_gen3x16_xdma_1_202211_1", "HBM[0:3]"),
        Board("u50", "xilinx_u50_gen3x16_xdma_5_202210_1", "HBM[0:3]"),
        Board("u55c", "xilinx_u55c_gen3x16_xdma_3_202210_1", "HBM[0:3]"),
    )
}
VITIS, XRT = "2022.2 to 2023.2", "2.14 to 2.16"
"""Versions whose documentation the package was written by."""
DEFAULT_MHZ = 300
"""The kernel clock that these platforms are made for; v++ lowers it to what is met."""
