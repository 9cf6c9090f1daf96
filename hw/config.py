"""The parameters of one build of the accelerator, and the hash that ties a build to the host's programs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from hw.errors import RedlineError

INTERFACE_VERSION = 4
"""Raised whenever descriptors, registers, layouts or the step order change meaning."""


ARITHMETICS = ("redline", "pipecnn")
"""How an accumulator becomes an output (docs/architecture.md, Arithmetic)."""


CONTROLS = ("pipeline", "microcode")
"""What makes an accelerator do what its descriptors say."""


_LATER = ("overclock", "address_bits", "count_bits", "extent_bits", "control")
"""Parameters that came after the hash."""


class ConfigError(RedlineError, ValueError):
    """A parameter of the accelerator is outside what the gateware can be built for."""


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters of the accelerator.

    Parameters
    ----------
    lanes : int
        Output channels computed per cycle (power of two, 2 to 64).
    vec : int
        Input channels consumed per cycle (power of two, 4 to 16).
    feature_bytes : int
        Size of each of the two on-chip feature buffers A and B, bytes (power of two).
    weight_bytes : int
        Size of the on-chip weight ring, bytes (power of two).
    port_bits : int
        Width of the AXI4 memory port, bits (power of two, 32 to 512; between one feature word and one weight word).
    pool_columns : int
        Widest pooled row that the pooling line buffer holds, pixels.
    arithmetic : str
        "redline": the accumulator starts at the bias. "pipecnn": it starts at zero, and an 8-bit bias is added to the
        shifted and saturated sum, where it may wrap.
    overclock : int
        Elaborate the instrumentation for overclocking and stuck bits, with room for this many groups of output bits in
        each register bank (0 to 32; 0: none; 32 is enough for every delay table and clock).
    address_bits, count_bits, extent_bits : int
        Bits that are kept of a descriptor's addresses (16 to 48), counts and distances (10 to 32) and extents (6 to
        16), which the descriptor has with 64, 32 and 16 bits (`hw.descriptor`). Fewer make a smaller accelerator, for
        small chips; a program that needs more is refused.
    control : str
        "pipeline": stages of hardware, which all work at a time. "microcode": a microprogram that does one thing after
        the other (`hw.microcode`), for chips that are too small for that: the same results from the same descriptors,
        in some 18 times as many cycles. It has `vec` 4, `port_bits` 32, 2 or 4 `lanes`, at most 32 `address_bits`, the
        one arithmetic and no instrumentation; there is no weight ring (`weight_bytes` bounds a group's weights all the
        same, beyond which programs take other ways).
    saboteur : bool
        Elaborate the fault instrumentation. A plain build has no trace of it.
    probe : bool
        Add the `probe_*` debug outputs (operands, accumulators, requantised and pooled results, each with a valid) to
        the top level, for diagnosis in simulation. Does not change behaviour, and is not part of `hash`.

    Raises
    ------
    ConfigError
        If a value cannot be built; the message names the parameter and the legal range.
    """

    lanes: int = 16
    vec: int = 8
    feature_bytes: int = 65536
    weight_bytes: int = 65536
    port_bits: int = 128
    pool_columns: int = 64
    arithmetic: str = "redline"
    overclock: int = 0
    address_bits: int = 48
    count_bits: int = 32
    extent_bits: int = 16
    control: str = "pipeline"
    saboteur: bool = False
    probe: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = type(field.default)
            if type(value) is not wanted:
                raise ConfigError(f"{field.name} must be {wanted.__name__}, not {value!r}")
        if self.arithmetic not in ARITHMETICS:
            raise ConfigError(f"arithmetic must be one of {', '.join(ARITHMETICS)}, not {self.arithmetic!r}")
        if self.control not in CONTROLS:
            raise ConfigError(f"control must be one of {', '.join(CONTROLS)}, not {self.control!r}")
        for name, low, high in (
            ("lanes", 2, 64),
            ("vec", 4, 16),
            ("port_bits", 32, 512),
            ("feature_bytes", 256, 1 << 24),
            ("weight_bytes", 256, 1 << 24),
        ):
            value = getattr(self, name)
            if not _power_of_two(value) or not low <= value <= high:
                raise ConfigError(f"{name} must be a power of two from {low} to {high}, not {value}")
        if not 1 <= self.pool_columns <= 4096:
            raise ConfigError(f"pool_columns must be from 1 to 4096, not {self.pool_columns}")
        for name, low, high in (
            ("overclock", 0, 32),
            ("address_bits", 16, 48),
            ("count_bits", 10, 32),
            ("extent_bits", 6, 16),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, not {getattr(self, name)}")
        least = max(self.extent_bits, self.feature_words.bit_length())
        if self.count_bits < least:
            raise ConfigError(
                f"count_bits must be at least {least}, to count the {self.feature_words} words of a feature buffer and "
                f"extents of {self.extent_bits} bits, not {self.count_bits}"
            )
        widest = self.lanes * min(self.vec, 8)
        if not self.vec <= self.port_bytes <= widest:
            raise ConfigError(
                f"port_bits must be from {8 * self.vec} (one feature word) to {8 * widest} "
                f"for {self.lanes} lanes x vec {self.vec}, not {self.port_bits}"
            )
        if self.weight_words < 16:
            raise ConfigError(
                f"weight_bytes must hold at least 16 words of {self.lanes * self.vec} bytes, "
                f"not {self.weight_bytes} bytes"
            )

        if self.control == "microcode":
            self._check_microcode()

    def _check_microcode(self) -> None:
        for name, allowed in (
            ("lanes", (2, 4)),
            ("vec", (4,)),
            ("port_bits", (32,)),
            ("arithmetic", ("redline",)),
            ("saboteur", (False,)),
            ("overclock", (0,)),
            ("probe", (False,)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                wanted = " or ".join(str(each) for each in allowed)
                raise ConfigError(f'with control="microcode", {name} must be {wanted}, not {value!r}')
        for name, most in (("address_bits", 32), ("pool_columns", 256)):
            if getattr(self, name) > most:
                raise ConfigError(f'with control="microcode", {name} must be at most {most}, not {getattr(self, name)}')

    @property
    def port_bytes(self) -> int:
        """Bytes per beat of the memory port."""
        return self.port_bits // 8

    @property
    def feature_words(self) -> int:
        """Depth of each feature buffer, in words of VEC bytes."""
        return self.feature_bytes // self.vec

    @property
    def weight_words(self) -> int:
        """Depth of the weight ring, in words of LANES x VEC bytes."""
        return self.weight_bytes // (self.lanes * self.vec)

    @property
    def max_extent(self) -> int:
        """Largest extent that a descriptor of this build can have."""
        return (1 << self.extent_bits) - 1

    @property
    def max_count(self) -> int:
        """Largest count or distance that a descriptor of this build can have."""
        return (1 << self.count_bits) - 1

    @property
    def reach(self) -> int:
        """Bytes of memory that this build's addresses reach."""
        return 1 << self.address_bits

    @property
    def channel_align(self) -> int:
        """Output channels are computed in multiples of this many (zero weights fill the rest)."""
        return max(self.lanes, self.vec)

    @property
    def hash(self) -> int:
        """64-bit identity of the build, readable in the `config_hash` registers."""
        functional = {name: value for name, value in asdict(self).items() if name != "probe"}
        for name in _LATER:
            if functional[name] == getattr(Config, name):
                del functional[name]  # such a build is the same as before there was the parameter
        text = json.dumps({"interface": INTERFACE_VERSION, **functional}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
