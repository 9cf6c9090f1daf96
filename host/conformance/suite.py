"""The suite: checks that a device must pass, on each of a few accelerators, and what came of them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from host.devices.device import Device
from host.verification.cases import CONFIGS
from hw.config import Config

Make = Callable[[Config], Device]
State = Literal["pass", "fail", "skip"]

REDLINE, PIPECNN, PLAIN = CONFIGS[1], CONFIGS[7], CONFIGS[6]
"""An accelerator of each arithmetic, and one without fault instrumentation; verification has built them, too."""


class Broken(AssertionError):
    """A device does not keep the contract."""


class Skipped(Exception):
    """A check does not apply; the message says why."""


def need(condition: bool, message: str) -> None:
    """Raise `Broken` unless the condition holds."""
    if not condition:
        raise Broken(message)


class Bench:
    """What a check works on.

    Parameters
    ----------
    make : callable (Config) -> Device
    config : Config
    any_build : bool
        Whether the device can be made for other accelerators, too.
    seed, cases : int
        Of random contents and programs; how many programs.
    """

    def __init__(self, make: Make, config: Config, *, any_build: bool = True, seed: int = 1, cases: int = 12) -> None:
        self.make, self.config, self.any_build = make, config, any_build
        self.seed, self.cases = seed, cases
        self._device: Device | None = None

    @property
    def device(self) -> Device:
        """The device; made when first needed, and kept."""
        if self._device is None:
            self._device = self.make(self.config)
        return self._device

    def another(self, config: Config | None = None) -> Device:
        """A device of its own for a check, which closes it."""
        if config is not None and config != self.config and not self.any_build:
            raise Skipped("the device is of one build")
        return self.make(config or self.config)

    def close(self) -> None:
        """Close the device that was kept."""
        device, self._device = self._device, None
        if device is not None:
            device.close()


@dataclass(frozen=True)
class Check:
    """One thing that the contract demands."""

    group: str
    name: str
    claim: str
    """What holds if it passes, in words."""
    run: Callable[[Bench], None]


@dataclass(frozen=True)
class Result:
    """What came of a check on one accelerator."""

    check: Check
    config: Config
    state: State
    note: str = ""
    seconds: float = 0.0


@dataclass
class Conformance:
    """What came of all checks."""

    device: str
    configs: tuple[Config, ...]
    results: list[Result] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> list[Result]:
        """Results of checks that failed."""
        return [result for result in self.results if result.state == "fail"]

    def of(self, check: Check) -> list[Result]:
        """A check's results, accelerator by accelerator."""
        return [result for result in self.results if result.check == check]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        states = [result.state for result in self.results]
        return {
            "device": self.device,
            "ok": self.ok,
            **{state: states.count(state) for state in ("pass", "fail", "skip")},
            "results": [
                {
                    "group": result.check.group,
                    "check": result.check.name,
                    "claim": result.check.claim,
                    "accelerator": label(result.config),
                    "state": result.state,
                    "note": result.note,
                    "seconds": round(result.seconds, 3),
                }
                for result in self.results
            ],
        }


def label(config: Config) -> str:
    """An accelerator in a word or two."""
    return f"{config.lanes}x{config.vec}{'' if config.arithmetic == 'redline' else f' {config.arithmetic}'}"


_CHECKS: list[Check] = []


def check(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
    """Add a function to the suite. Its module names the group, the first line of its docstring is the claim."""
    group = function.__module__.rpartition(".")[2]
    claim = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
    _CHECKS.append(Check(group, function.__name__, claim, function))
    return function


def checks() -> tuple[Check, ...]:
    """Every check, in order."""
    # They add themselves.
    from host.conformance import contents, faults, launches, numbers, refusals

    order = [module.__name__.rpartition(".")[2] for module in (contents, numbers, launches, faults, refusals)]
    return tuple(sorted(_CHECKS, key=lambda one: order.index(one.group)))


def run(
    device: str,
    make: Make,
    configs: Sequence[Config] = (REDLINE, PIPECNN),
    *,
    any_build: bool = True,
    seed: int = 1,
    cases: int = 12,
    progress: Callable[[Check, Config], None] | None = None,
) -> Conformance:
    """Run a device through the suite.

    Parameters
    ----------
    device : str
        Its name, for the report.
    make : callable (Config) -> Device
    configs : sequence of Config
        Accelerators that the device is made for.
    any_build : bool
        Whether it can be made for others, too. A board holds one build.
    seed, cases : int
        Of the random programs.
    progress : callable (check, config), optional
        Called before each check.

    Raises
    ------
    DeviceError
        If the device cannot be made at all.
    """
    report = Conformance(device, tuple(configs))
    for config in configs:
        bench = Bench(make, config, any_build=any_build, seed=seed, cases=cases)
        try:
            assert bench.device is not None
            for one in checks():
                if progress is not None:
                    progress(one, config)
                report.results.append(_result(one, bench))
        finally:
            bench.close()
    return report


def _result(one: Check, bench: Bench) -> Result:
    started = time.monotonic()
    state: State = "pass"
    note = ""
    try:
        one.run(bench)
    except Skipped as reason:
        state, note = "skip", str(reason)
    except Broken as failure:
        state, note = "fail", str(failure)
    except Exception as error:
        # Whatever a stranger's device raises is a finding, not the end of the suite. Its state is unknown now.
        state, note = "fail", f"{type(error).__name__}: {error}"
        bench.close()
    return Result(one, bench.config, state, note, time.monotonic() - started)
