"""Writes the package of one accelerator: Verilog, kernel.xml, Tcl, link configuration, README."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from string import Template

from hw.config import INTERFACE_VERSION, Config, ConfigError
from hw.errors import RedlineError
from hw.record import DTYPE as RECORD
from hw.registers import ARGUMENTS
from hw.verilog import TOP, generate
from hw.vitis import boards, interface
from hw.vitis.boards import DEFAULT_MHZ, Board

HERE = Path(__file__).parent
STATIC = ("package_kernel.tcl", "gen_xo.tcl")


class PackageError(RedlineError, OSError):
    """The package cannot be written."""


def link_configuration(board: Board, mhz: int, units: int, *, keep_clock: bool) -> str:
    """Text of the configuration of `v++ --link`."""
    cus = [f"{interface.KERNEL}_{number}" for number in range(1, units + 1)]
    lines = [
        f"# For {board.platform}; v++ --link --config link.cfg",
        f"platform={board.platform}",
        f"kernel_frequency=0:{mhz}",
        "",
        "[connectivity]",
        f"nk={interface.KERNEL}:{units}:{'.'.join(cus)}",
        *(f"sp={cu}.{interface.MEMORY_PORT}:{board.memory}" for cu in cus),
    ]
    if keep_clock:
        lines += [
            "",
            "[advanced]",
            "# Overclocked on purpose: link even if timing fails, and do not lower the clock.",
            "param=compiler.skipTimingCheckAndFrequencyScaling=1",
        ]
    return "\n".join(lines) + "\n"


def contents(
    config: Config, board: Board, *, mhz: int = DEFAULT_MHZ, units: int = 1, keep_clock: bool = False
) -> dict[str, str]:
    """The package's files: text by name.

    Raises
    ------
    ConfigError
        If the accelerator cannot be a kernel.
    """
    assert interface.KERNEL == TOP
    if config.probe:
        raise ConfigError("probe adds ports that no Vitis platform connects; build the kernel without it")
    if not 1 <= units <= 15:
        raise ConfigError(f"units must be from 1 to 15 (one memory port has no more masters), not {units}")
    if not 1 <= mhz <= 1000:
        raise ConfigError(f"mhz must be from 1 to 1000, not {mhz}")
    return {
        "redline.v": generate(config, opencl=True),
        "kernel.xml": interface.kernel_xml(config),
        "interface.tcl": interface.interface_tcl(),
        **{name: (HERE / name).read_text() for name in STATIC},
        "link.cfg": link_configuration(board, mhz, units, keep_clock=keep_clock),
        "README.md": _readme(config, board, mhz, units, keep_clock),
    }


def write(folder: Path, files: dict[str, str]) -> list[Path]:
    """Write the files, over those of an earlier package.

    Raises
    ------
    PackageError
        If that is not possible.
    """
    paths = [folder / name for name in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text)
    except OSError as error:
        raise PackageError(f"{error.filename or folder}: {error.strerror}; name another folder with --out") from error
    return paths


def _readme(config: Config, board: Board, mhz: int, units: int, keep_clock: bool) -> str:
    parameters = {name: value for name, value in asdict(config).items() if name != "probe"}
    arguments = [
        f"| {number} | `{argument.name}` | {argument.offset:#04x} | {argument.bits // 8} | {argument.meaning} |"
        for number, argument in enumerate(ARGUMENTS)
    ]
    record = [f"{name} ({RECORD[name].itemsize})" for name in RECORD.names or ()]
    options = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
    checked = [f"{name}={str(value).lower()}" for name, value in parameters.items()]
    lower = (
        "`link.cfg` forbids v++ to lower the clock: the binary runs at it even though timing is not met."
        if keep_clock
        else "v++ lowers the clock to what its timing analysis meets; `redline kernel --keep-clock` forbids that."
    )
    return Template((HERE / "README.md.in").read_text()).substitute(
        parameters="\n".join(f"| {name} | {value} |" for name, value in parameters.items()),
        hash=f"{config.hash:#018x}",
        interface=INTERFACE_VERSION,
        arguments="\n".join(arguments),
        record=", ".join(record),
        platform=board.platform,
        memory=board.memory,
        mhz=mhz,
        units=units,
        lower=lower,
        options=options,
        checks=" ".join(f"--option {each}" for each in ["binary=redline.xclbin", "platform=xilinx", *checked]),
        buffer=", memory_bytes=1 << 27" if board.has_hbm else "",
        vitis=boards.VITIS,
        xrt=boards.XRT,
        platforms="\n".join(f"* {each.name}: `{each.platform}`" for each in boards.BOARDS.values()),
        multipliers=config.lanes * config.vec,
    )
