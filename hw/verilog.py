"""The accelerator as Verilog: module `redline` with the flat port names that tools expect."""

from __future__ import annotations

import re

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal
from amaranth.utils import exact_log2

from hw.accelerator import probes
from hw.clocked import clocked
from hw.config import Config
from hw.control import span
from hw.overclocked import adders_verilog
from hw.variants import accelerator

TOP = "redline"

ZEROED_WORDS = 64
"""Larger memories are not zeroed: a statement a word chokes compilers, and no job reads what nothing wrote."""
_ZERO = r" *{} *\[\d+\] = \d+'[bdh]0+;\n"
_ZEROING = re.compile(
    rf"^ *initial begin\n((?:{_ZERO.format('(?P<name>[^ ]+?)')})(?:{_ZERO.format('(?P=name)')})*) *end\n", re.MULTILINE
)


class Kernel(Elaboratable):
    """Flat ports around an Accelerator: `ap_clk`, `ap_rst_n`, `interrupt`, `s_axi_control_*`, `m_axi_gmem_*`.

    Parameters
    ----------
    config : Config
    opencl : bool
        See Accelerator.

    Attributes
    ----------
    ports : dict of str to Signal
    """

    def __init__(self, config: Config, *, opencl: bool = False) -> None:
        self._config = config
        self._opencl = opencl
        widths = {
            "ap_clk": 1,
            "ap_rst_n": 1,
            "interrupt": 1,
            **{f"s_axi_control_{name}": bits for name, bits in control_ports(span(opencl)).items()},
            **{f"m_axi_gmem_{name}": bits for name, bits in memory_ports(config).items()},
            **(probes(config) if config.probe else {}),
        }
        self.ports = {name: Signal(bits, name=name) for name, bits in widths.items()}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.ports
        m.submodules.accelerator = device = accelerator(self._config, opencl=self._opencl)
        m.domains.sync = domain = ClockDomain()
        m.domains.port = port_domain = ClockDomain(reset_less=True)
        # A register between the reset pin and the fabric: it has a large fan-out.
        m.d.port += domain.rst.eq(~p["ap_rst_n"])
        m.d.comb += [
            domain.clk.eq(p["ap_clk"]),
            port_domain.clk.eq(p["ap_clk"]),
            p["interrupt"].eq(device.interrupt),
        ]
        for prefix, channels, fields in (
            (
                "s_axi_control_",
                {name: getattr(device.control, name) for name in ("aw", "w", "b", "ar", "r")},
                {"aw": ("addr",), "w": ("data", "strb"), "b": ("resp",), "ar": ("addr",), "r": ("data", "resp")},
            ),
            (
                "m_axi_gmem_",
                {name: getattr(device, name) for name in ("aw", "w", "ar", "r")},
                {
                    "aw": ("addr", "len"),
                    "w": ("data", "strb", "last"),
                    "ar": ("addr", "len"),
                    "r": ("data", "last"),
                },
            ),
        ):
            for name, channel in channels.items():
                driven = (prefix, name) in _FROM_OUTSIDE
                valid, ready = p[f"{prefix}{name}valid"], p[f"{prefix}{name}ready"]
                m.d.comb += (
                    [channel.valid.eq(valid), ready.eq(channel.ready)]
                    if driven
                    else [
                        valid.eq(channel.valid),
                        channel.ready.eq(ready),
                    ]
                )
                for field in fields[name]:
                    port = p[f"{prefix}{name}{field}"]
                    inner = channel.payload if len(fields[name]) == 1 else channel.payload[field]
                    m.d.comb += inner.eq(port) if driven else port.eq(inner)
        for channel in ("aw", "ar"):
            m.d.comb += [
                p[f"m_axi_gmem_{channel}size"].eq(exact_log2(self._config.port_bytes)),
                p[f"m_axi_gmem_{channel}burst"].eq(0b01),  # INCR
            ]
        m.d.comb += [p["m_axi_gmem_bready"].eq(1), device.b.eq(p["m_axi_gmem_bvalid"])]
        if self._opencl:
            m.d.comb += [
                device.r_error.eq(p["m_axi_gmem_rvalid"] & p["m_axi_gmem_rready"] & p["m_axi_gmem_rresp"][1]),
                device.b_error.eq(p["m_axi_gmem_bvalid"] & p["m_axi_gmem_bresp"][1]),
            ]
        if self._config.probe:
            m.d.comb += [p[name].eq(getattr(device, name)) for name in probes(self._config)]
        return m


_FROM_OUTSIDE = {("s_axi_control_", "aw"), ("s_axi_control_", "w"), ("s_axi_control_", "ar"), ("m_axi_gmem_", "r")}


def control_ports(bits: int) -> dict[str, int]:
    """Widths of the control port's signals, with addresses of `bits`."""
    return {
        "awvalid": 1,
        "awready": 1,
        "awaddr": bits,
        "wvalid": 1,
        "wready": 1,
        "wdata": 32,
        "wstrb": 4,
        "bvalid": 1,
        "bready": 1,
        "bresp": 2,
        "arvalid": 1,
        "arready": 1,
        "araddr": bits,
        "rvalid": 1,
        "rready": 1,
        "rdata": 32,
        "rresp": 2,
    }


def memory_ports(config: Config) -> dict[str, int]:
    """Widths of the memory port's signals."""
    burst = {"valid": 1, "ready": 1, "addr": 64, "len": 8, "size": 3, "burst": 2}
    return {
        **{f"aw{name}": bits for name, bits in burst.items()},
        "wvalid": 1,
        "wready": 1,
        "wdata": config.port_bits,
        "wstrb": config.port_bytes,
        "wlast": 1,
        "bvalid": 1,
        "bready": 1,
        "bresp": 2,
        **{f"ar{name}": bits for name, bits in burst.items()},
        "rvalid": 1,
        "rready": 1,
        "rdata": config.port_bits,
        "rlast": 1,
        "rresp": 2,
    }


def generate(config: Config, *, opencl: bool = False) -> str:
    """Verilog text of module `redline` for `config`; `opencl` as of Accelerator."""
    kernel = Kernel(config, opencl=opencl)
    # Without source locations: they would make every comment a new design for whoever caches builds.
    text = verilog.convert(
        kernel, name=TOP, ports=list(kernel.ports.values()), emit_src=False, strip_internal_attrs=True
    )
    instantiated = adders_verilog() if config.overclock else ""
    return clocked(without_zeroing(str(text))) + instantiated


def without_zeroing(text: str) -> str:
    """The text without the `initial` blocks that do nothing but zero a large memory."""
    return _ZEROING.sub(lambda block: block[0] if block[1].count("\n") <= ZEROED_WORDS else "", text)
