"""The board's oscillator, multiplied: the clock of domain `sync`, and its reset while the clock is not steady."""

from __future__ import annotations

from amaranth.hdl import C, ClockDomain, Instance, Module, Signal
from amaranth.lib.cdc import ResetSynchronizer

from hw.boards.pll import Ehxplll, Pll, PllError, Rpll, SbPll40, Setting


def add_clock(m: Module, pll: Pll, reference_mhz: float, setting: Setting, reference: Signal) -> None:
    """Give a module the domain `sync`: clocked by the PLL, and in reset until the PLL has locked.

    Parameters
    ----------
    m : Module
    pll : Pll
    reference_mhz : float
        Of `reference`, from which the PLL makes the clock.
    setting : Setting
    reference : Signal
        From the oscillator's pad.

    Raises
    ------
    PllError
        If there is no instance of such a PLL.
    """
    if type(pll) not in _INSTANCES:
        raise PllError(f"no instance of {pll.primitive} is known")
    clock, locked = Signal(name="clock"), Signal(name="locked")
    m.domains.sync = domain = ClockDomain()
    m.d.comb += domain.clk.eq(clock)
    m.submodules.pll = _INSTANCES[type(pll)](reference, reference_mhz, setting, clock, locked)
    # One register more than metastability needs: the last one, of its own, drives the whole chip.
    m.submodules.reset = ResetSynchronizer(~locked, stages=3)


def _ehxplll(reference: Signal, reference_mhz: float, setting: Setting, clock: Signal, locked: Signal) -> Instance:
    """Analogue parameters as Diamond gives them (and ecppll after it); phases half way, which nothing depends on."""
    dividers = dict(setting.dividers)
    feedback = Signal(name="feedback")
    return Instance(
        "EHXPLLL",
        ("a", "FREQUENCY_PIN_CLKI", f"{reference_mhz:g}"),
        ("a", "FREQUENCY_PIN_CLKOS", f"{float(setting.mhz):g}"),
        ("a", "ICP_CURRENT", "12"),
        ("a", "LPF_RESISTOR", "8"),
        ("a", "MFG_ENABLE_FILTEROPAMP", "1"),
        ("a", "MFG_GMCREF_SEL", "2"),
        *(("p", name, value) for name, value in setting.dividers),
        ("p", "CLKOP_ENABLE", "ENABLED"),
        ("p", "CLKOP_CPHASE", dividers["CLKOP_DIV"] // 2),
        ("p", "CLKOP_FPHASE", 0),
        ("p", "CLKOS_ENABLE", "ENABLED"),
        ("p", "CLKOS_CPHASE", dividers["CLKOS_DIV"] // 2),
        ("p", "CLKOS_FPHASE", 0),
        ("p", "FEEDBK_PATH", "CLKOP"),
        ("p", "OUTDIVIDER_MUXA", "DIVA"),
        ("p", "OUTDIVIDER_MUXB", "DIVB"),
        ("p", "OUTDIVIDER_MUXC", "DIVC"),
        ("p", "OUTDIVIDER_MUXD", "DIVD"),
        ("p", "PLLRST_ENA", "DISABLED"),
        ("p", "INTFB_WAKE", "DISABLED"),
        ("p", "STDBY_ENABLE", "DISABLED"),
        ("p", "DPHASE_SOURCE", "DISABLED"),
        ("i", "CLKI", reference),
        ("i", "CLKFB", feedback),
        ("o", "CLKOP", feedback),
        ("o", "CLKOS", clock),
        ("o", "LOCK", locked),
        *(("i", name, 0) for name in ("RST", "STDBY", "PHASESEL0", "PHASESEL1", "PLLWAKESYNC", "ENCLKOP", "ENCLKOS")),
        *(("i", name, 1) for name in ("PHASEDIR", "PHASESTEP", "PHASELOADREG")),
    )


def _sb_pll40(reference: Signal, reference_mhz: float, setting: Setting, clock: Signal, locked: Signal) -> Instance:
    return Instance(
        "SB_PLL40_PAD",
        *(("p", name, value) for name, value in setting.dividers),
        ("p", "FEEDBACK_PATH", "SIMPLE"),
        ("p", "PLLOUT_SELECT", "GENCLK"),
        ("i", "PACKAGEPIN", reference),
        ("o", "PLLOUTGLOBAL", clock),
        ("o", "LOCK", locked),
        ("i", "RESETB", 1),
        ("i", "BYPASS", 0),
    )


def _rpll(reference: Signal, reference_mhz: float, setting: Setting, clock: Signal, locked: Signal) -> Instance:
    return Instance(
        "rPLL",
        *(("p", name, value) for name, value in setting.dividers),
        ("p", "FCLKIN", f"{reference_mhz:g}"),
        ("p", "DEVICE", "GW1NR-9C"),
        ("p", "CLKFB_SEL", "internal"),
        *(("p", f"DYN_{name}", "false") for name in ("IDIV_SEL", "FBDIV_SEL", "ODIV_SEL", "DA_EN")),
        *(("p", f"{name}_BYPASS", "false") for name in ("CLKOUT", "CLKOUTP", "CLKOUTD")),
        ("p", "DYN_SDIV_SEL", 2),
        ("p", "PSDA_SEL", "0000"),
        ("p", "DUTYDA_SEL", "1000"),
        ("i", "CLKIN", reference),
        ("o", "CLKOUT", clock),
        ("o", "LOCK", locked),
        *(("i", name, 0) for name in ("CLKFB", "RESET", "RESET_P")),
        *(("i", name, C(0, 6)) for name in ("FBDSEL", "IDSEL", "ODSEL")),
        *(("i", name, C(0, 4)) for name in ("PSDA", "DUTYDA", "FDLY")),
    )


_INSTANCES = {Ehxplll: _ehxplll, SbPll40: _sb_pll40, Rpll: _rpll}
