"""Dividers of the boards' clock generators: every setting that the datasheets allow, and the one nearest to a wish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from hw.errors import RedlineError

Range = tuple[Fraction, Fraction]


class PllError(RedlineError, ValueError):
    """No setting of the board's clock generator gives such a clock."""


@dataclass(frozen=True)
class Setting:
    """One setting of a clock generator. All frequencies in MHz, exact.

    Attributes
    ----------
    mhz : Fraction
        Of the output.
    vco_mhz, pfd_mhz : Fraction
        Of the oscillator, and at the phase detector.
    dividers : tuple of (str, int)
        Parameters of the primitive, by the names that its instance takes.
    """

    mhz: Fraction
    vco_mhz: Fraction
    pfd_mhz: Fraction
    dividers: tuple[tuple[str, int], ...]


def _mhz(low: float | str, high: float | str) -> Range:
    return Fraction(low), Fraction(high)


def _within(value: Fraction, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


@dataclass(frozen=True)
class Pll:
    """A family's clock generator.

    Attributes
    ----------
    primitive : str
        What is instantiated.
    input, pfd, vco, output : (Fraction, Fraction)
        What the datasheet allows, MHz.
    """

    primitive: str
    input: Range
    pfd: Range
    vco: Range
    output: Range

    def settings(self, reference: Fraction) -> Iterator[Setting]:
        """Every setting within the limits, for a reference of so many MHz."""
        raise NotImplementedError

    def nearest(self, reference: float | Fraction, wanted: float | Fraction) -> Setting:
        """The setting whose clock is nearest to `wanted`; among equals the fastest phase detector (least jitter).

        Raises
        ------
        PllError
            If `wanted` lies outside what this reference can give.
        """
        reference, wanted = Fraction(reference), Fraction(wanted)
        found = list(self.settings(reference))
        if not found:
            raise PllError(f"{self.primitive}: no clock can be made from a reference of {float(reference):g} MHz")
        low, high = min(setting.mhz for setting in found), max(setting.mhz for setting in found)
        if not low <= wanted <= high:
            raise PllError(
                f"{self.primitive} makes {float(low):g} to {float(high):g} MHz from {float(reference):g} MHz, "
                f"not {float(wanted):g} MHz"
            )
        return min(found, key=lambda setting: (abs(setting.mhz - wanted), -setting.pfd_mhz, setting.dividers))


@dataclass(frozen=True)
class Ehxplll(Pll):
    """ECP5: feedback from CLKOP, the clock from CLKOS, which has a divider of its own and so finer steps.

    Lattice FPGA-DS-02012 (ECP5 family data sheet), sysCLOCK PLL timing; FPGA-TN-02200 for the dividers.
    """

    primitive: str = "EHXPLLL"
    input: Range = _mhz(8, 400)
    pfd: Range = _mhz(10, 400)
    vco: Range = _mhz(400, 800)
    output: Range = _mhz("3.125", 400)
    most: int = 128
    """Of each divider."""

    def settings(self, reference: Fraction) -> Iterator[Setting]:
        """See `Pll.settings`."""
        if not _within(reference, self.input):
            return
        for clki in range(1, self.most + 1):
            pfd = reference / clki
            # CLKOP feeds back undivided: it is the phase detector's clock, an output, and an input.
            if not all(_within(pfd, limits) for limits in (self.pfd, self.output, self.input)):
                continue
            for clkop in range(1, self.most + 1):
                vco = pfd * clkop
                if not _within(vco, self.vco):
                    continue
                for clkos in range(1, self.most + 1):
                    if _within(vco / clkos, self.output):
                        dividers = {"CLKI_DIV": clki, "CLKFB_DIV": 1, "CLKOP_DIV": clkop, "CLKOS_DIV": clkos}
                        yield Setting(vco / clkos, vco, pfd, tuple(dividers.items()))


@dataclass(frozen=True)
class SbPll40(Pll):
    """iCE40: simple feedback. Lattice FPGA-DS-02008 (iCE40 UltraPlus), sysCLOCK PLL timing; FPGA-TN-02052."""

    primitive: str = "SB_PLL40_PAD"
    input: Range = _mhz(10, 133)
    pfd: Range = _mhz(10, 133)
    vco: Range = _mhz(533, 1066)
    output: Range = _mhz(16, 275)

    FILTERS = (17, 26, 44, 66, 101)
    """FILTER_RANGE is one more than how many of these the phase detector's MHz reach (FPGA-TN-02052)."""

    def settings(self, reference: Fraction) -> Iterator[Setting]:
        """See `Pll.settings`."""
        if not _within(reference, self.input):
            return
        for divr in range(16):
            pfd = reference / (divr + 1)
            if not _within(pfd, self.pfd):
                continue
            for divf in range(64):
                vco = pfd * (divf + 1)
                if not _within(vco, self.vco):
                    continue
                for divq in range(1, 7):
                    if _within(vco / 2**divq, self.output):
                        band = 1 + sum(pfd >= edge for edge in self.FILTERS)
                        dividers = {"DIVR": divr, "DIVF": divf, "DIVQ": divq, "FILTER_RANGE": band}
                        yield Setting(vco / 2**divq, vco, pfd, tuple(dividers.items()))


@dataclass(frozen=True)
class Rpll(Pll):
    """Gowin GW1NR-9 C6/I5. Gowin DS117 (GW1NR family), PLL parameters; UG286 for the dividers."""

    primitive: str = "rPLL"
    input: Range = _mhz(3, 400)
    pfd: Range = _mhz(3, 400)
    vco: Range = _mhz(400, 1200)
    output: Range = _mhz("3.125", 600)

    ODIV = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)

    def settings(self, reference: Fraction) -> Iterator[Setting]:
        """See `Pll.settings`."""
        if not _within(reference, self.input):
            return
        for idiv in range(64):
            pfd = reference / (idiv + 1)
            if not _within(pfd, self.pfd):
                continue
            for fbdiv in range(64):
                mhz = pfd * (fbdiv + 1)
                if not _within(mhz, self.output):
                    continue
                for odiv in self.ODIV:
                    if _within(mhz * odiv, self.vco):
                        dividers = {"IDIV_SEL": idiv, "FBDIV_SEL": fbdiv, "ODIV_SEL": odiv}
                        yield Setting(mhz, mhz * odiv, pfd, tuple(dividers.items()))
