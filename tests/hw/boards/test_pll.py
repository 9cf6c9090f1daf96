"""The dividers of the boards' clock generators: within the datasheets' limits, and none better was passed over."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.boards.pll import Ehxplll, Pll, PllError, Rpll, SbPll40, Setting

REFERENCES = {Ehxplll: (25, 48), SbPll40: (12,), Rpll: (27,)}
PLLS = [(pll, reference) for pll, references in REFERENCES.items() for reference in references]


def ehxplll(reference: int, dividers: dict[str, int]) -> tuple[Fraction, Fraction, Fraction]:
    """Phase detector, oscillator, output, MHz, by the feedback loop's equations."""
    detector = Fraction(reference, dividers["CLKI_DIV"])
    clkop = detector * dividers["CLKFB_DIV"]
    assert 8 <= clkop <= 400
    oscillator = clkop * dividers["CLKOP_DIV"]
    return detector, oscillator, oscillator / dividers["CLKOS_DIV"]


def sb_pll40(reference: int, dividers: dict[str, int]) -> tuple[Fraction, Fraction, Fraction]:
    detector = Fraction(reference, dividers["DIVR"] + 1)
    oscillator = detector * (dividers["DIVF"] + 1)
    return detector, oscillator, oscillator / (1 << dividers["DIVQ"])


def rpll(reference: int, dividers: dict[str, int]) -> tuple[Fraction, Fraction, Fraction]:
    detector = Fraction(reference, dividers["IDIV_SEL"] + 1)
    output = detector * (dividers["FBDIV_SEL"] + 1)
    return detector, output * dividers["ODIV_SEL"], output


EQUATIONS = {Ehxplll: ehxplll, SbPll40: sb_pll40, Rpll: rpll}
# The datasheets' limits once more, MHz: phase detector, oscillator, output.
LIMITS = {
    Ehxplll: ((10, 400), (400, 800), (3.125, 400)),
    SbPll40: ((10, 133), (533, 1066), (16, 275)),
    Rpll: ((3, 400), (400, 1200), (3.125, 600)),
}


@pytest.mark.parametrize(("kind", "reference"), PLLS)
def test_every_setting_obeys_the_equations_and_the_datasheet(kind: type[Pll], reference: int) -> None:
    found = list(kind().settings(Fraction(reference)))
    assert len({setting.dividers for setting in found}) == len(found) > 20
    for setting in found:
        values = EQUATIONS[kind](reference, dict(setting.dividers))
        assert values == (setting.pfd_mhz, setting.vco_mhz, setting.mhz)
        for value, (low, high) in zip(values, LIMITS[kind], strict=True):
            assert low <= value <= high


def brute_force(kind: type[Pll], reference: int) -> set[Fraction]:
    """Output clocks of all dividers that fit their registers and keep the limits, tried one by one."""
    detectors, oscillators, outputs = LIMITS[kind]

    def legal(value: Fraction, limits: tuple[float, float]) -> bool:
        return limits[0] <= value <= limits[1]

    clocks = set()
    for divided in range(1, 129 if kind is Ehxplll else 17 if kind is SbPll40 else 65):
        detector = Fraction(reference, divided)
        if not legal(detector, detectors):
            continue
        if kind is Rpll:
            for multiple, odiv in product(range(1, 65), (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)):
                if legal(detector * multiple, outputs) and legal(detector * multiple * odiv, oscillators):
                    clocks.add(detector * multiple)
            continue
        # The oscillator's multiple: on the ECP5, of two dividers in a row.
        for multiple in range(1, 128 * 128 + 1 if kind is Ehxplll else 65):
            if detector * multiple > oscillators[1]:
                break
            if detector * multiple < oscillators[0]:
                continue
            for divider in range(1, 129) if kind is Ehxplll else (2, 4, 8, 16, 32, 64):
                if legal(detector * multiple / divider, outputs):
                    clocks.add(detector * multiple / divider)
    return clocks


BRUTE = {case: brute_force(*case) for case in PLLS}


@pytest.mark.parametrize(("kind", "reference"), PLLS)
def test_no_clock_that_the_dividers_can_make_is_missed(kind: type[Pll], reference: int) -> None:
    assert {setting.mhz for setting in kind().settings(Fraction(reference))} == BRUTE[kind, reference]


@settings(deadline=None, max_examples=12)
@given(case=st.sampled_from(PLLS), wanted=st.floats(8, 300))
def test_the_nearest_setting_is_as_near_as_brute_force_gets(case: tuple[type[Pll], int], wanted: float) -> None:
    kind, reference = case
    clocks = BRUTE[case]
    if not min(clocks) <= Fraction(wanted) <= max(clocks):
        with pytest.raises(PllError, match=rf"makes .* MHz from {reference} MHz, not"):
            kind().nearest(reference, wanted)
        return
    found = kind().nearest(reference, wanted)
    assert abs(found.mhz - Fraction(wanted)) == min(abs(clock - Fraction(wanted)) for clock in clocks)
    # Among equals the fastest phase detector.
    equals = [setting for setting in kind().settings(Fraction(reference)) if setting.mhz == found.mhz]
    assert found.pfd_mhz == max(setting.pfd_mhz for setting in equals)


def test_steps_are_fine_enough_to_walk_into_the_errors() -> None:
    """On the ECP5 boards: neighbouring clocks between 30 and 100 MHz differ by less than 2.2 %."""
    for reference in (25, 48):
        clocks = sorted(clock for clock in BRUTE[Ehxplll, reference] if 30 <= clock <= 100)
        assert max(after / before for before, after in zip(clocks, clocks[1:], strict=False)) < 1.022


def test_the_filter_of_the_ice40_follows_the_phase_detector() -> None:
    """FPGA-TN-02052, as the icepll tool has it: 12 MHz are in the first band, 48 MHz in the fourth."""
    for reference, band in ((12, 1), (20, 2), (30, 3), (48, 4), (80, 5), (110, 6)):
        whole = [s for s in SbPll40().settings(Fraction(reference)) if dict(s.dividers)["DIVR"] == 0]
        assert {dict(setting.dividers)["FILTER_RANGE"] for setting in whole} == {band}


def test_a_reference_that_no_pll_takes_is_refused() -> None:
    with pytest.raises(PllError, match="no clock can be made from a reference of 2 MHz"):
        Ehxplll().nearest(2, 50)


def test_known_settings() -> None:
    """As the families' own tools give them for 62.5 MHz (ecppll), 18 MHz (icepll) and 54 MHz (gowin_pll)."""
    assert Ehxplll().nearest(25, 62.5).mhz == Fraction("62.5")
    ice40 = SbPll40().nearest(12, 18)
    assert dict(ice40.dividers) == {"DIVR": 0, "DIVF": 47, "DIVQ": 5, "FILTER_RANGE": 1}
    gowin = Rpll().nearest(27, 54)
    assert isinstance(gowin, Setting)
    assert (gowin.mhz, dict(gowin.dividers)["IDIV_SEL"], dict(gowin.dividers)["FBDIV_SEL"]) == (54, 0, 1)
