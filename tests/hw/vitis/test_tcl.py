"""The packaging scripts in a Tcl interpreter whose vendor commands are stand-ins that record their calls.

What Vivado would object to is the vendor's to say; here, each call must name ports, files and registers that exist.
The interpreter is tclsh, or Python's own.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hw.registers import ARGUMENTS, OFFSET
from hw.vitis.package import write
from tests.hw.vitis.kernels import SMALL, package, ports
from tests.needs import needs, needs_program

STAND_INS = Path(__file__).with_name("vivado.tcl")


class TclError(Exception):
    """A script failed; with its message."""


def by_tclsh(script: str) -> str:
    """What a script prints last, by tclsh."""
    done = subprocess.run(["tclsh"], input=script, capture_output=True, text=True, timeout=60, check=False)
    if done.stderr:
        raise TclError(done.stderr)
    return done.stdout


def by_tkinter(script: str) -> str:
    """The same, by the interpreter in Python."""
    import tkinter as tk

    tcl = tk.Tcl()
    tcl.eval('set printed {}; proc puts {text} {global printed; set printed "$text\\n"}')
    try:
        tcl.eval(script)
    except tk.TclError as error:
        raise TclError(str(error)) from error
    return str(tcl.getvar("printed"))


INTERPRETERS = [
    pytest.param(by_tclsh, marks=needs_program("tclsh", "tcl")),
    pytest.param(
        by_tkinter,
        marks=needs(importlib.util.find_spec("_tkinter") is not None, "apt-get install python3-tk"),
    ),
]


@dataclass
class Vivado:
    """What `vivado -mode batch -source SCRIPT -tclargs ...` called."""

    calls: list[list[str]]

    def named(self, command: str) -> list[list[str]]:
        """Arguments of the calls of one command, in order."""
        return [rest for name, *rest in self.calls if name == command]

    def properties(self, target: str) -> dict[str, str]:
        """What was set of one object."""
        return {name: value for name, value, of in self.named("set_property") if of == target}


def run(tcl: object, script: Path, *arguments: str, before: str = "") -> Vivado:
    """Source a script with the stand-ins, by one of INTERPRETERS."""
    listed = " ".join(f"{{{argument}}}" for argument in arguments)
    lines = [f"source {{{STAND_INS}}}", before, f"set argv [list {listed}]", f"set argc {len(arguments)}"]
    text = tcl("\n".join([*lines, f"source {{{script}}}", "puts [dump]", ""]))  # type: ignore[operator]
    return Vivado([line.split("\t") for line in text.splitlines()])


@pytest.fixture(params=INTERPRETERS)
def tcl(request: pytest.FixtureRequest) -> object:
    """A Tcl interpreter."""
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package, at a path with a blank in it."""
    write(tmp_path / "a kernel", package(SMALL))
    return tmp_path / "a kernel"


@pytest.fixture
def ran(tcl: object, folder: Path) -> Vivado:
    """The package, made into a kernel."""
    return run(tcl, folder / "gen_xo.tcl")


def test_the_kernel_is_made_from_the_packages_own_files(ran: Vivado, folder: Path) -> None:
    (options,) = ran.named("package_xo")
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "-xo_path": str(folder / "redline.xo"),
        "-kernel_name": "redline",
        "-ip_directory": str(folder / "work" / "packaged"),
        "-kernel_xml": str(folder / "kernel.xml"),
    }
    assert (folder / "redline.xo").exists()
    (added,) = ran.named("add_files")
    assert added[-1] == f"{{{folder / 'redline.v'}}}", "a list of one name"
    assert ran.properties("fileset")["top"] == "redline"
    steps = ["add_files", "ipx::package_project", "ipx::save_core", "package_xo"]
    assert [call[0] for call in ran.calls if call[0] in steps] == steps


def test_ports_are_tied_to_the_clock_and_the_clock_to_its_reset(ran: Vivado) -> None:
    calls = {tuple(call[:-1]) for call in ran.named("ipx::associate_bus_interfaces")}
    assert calls == {
        ("-busif", "m_axi_gmem", "-clock", "ap_clk"),
        ("-busif", "s_axi_control", "-clock", "ap_clk"),
        ("-clock", "ap_clk", "-reset", "ap_rst_n"),
    }
    # Every port of the module belongs to one of the interfaces that are tied: Vitis takes no other.
    for name in ports(package(SMALL)["redline.v"]):
        bus = name.rpartition("_")[0] if "_axi_" in name else name
        assert bus in ("m_axi_gmem", "s_axi_control", "ap_clk", "ap_rst_n", "interrupt"), name


def test_the_ip_is_a_kernel_of_the_name_that_kernel_xml_gives(ran: Vivado) -> None:
    core = ran.properties("core")
    assert core["sdx_kernel"] == "true"
    assert core["sdx_kernel_type"] == "rtl"
    assert core["vitis_drc"] == "ctrl_protocol ap_ctrl_hs"
    (packaged,) = ran.named("ipx::package_project")
    given = dict(zip(packaged[::2], packaged[1::2], strict=False))
    name = ":".join((given["-vendor"], given["-library"], core["name"], core["version"]))
    assert f'vlnv="{name}"' in package(SMALL)["kernel.xml"]
    assert ran.named("ipx::check_integrity") == [["-kernel", "core"]]


def test_the_ip_has_the_control_ports_registers(ran: Vivado) -> None:
    registers = [call[-2] for call in ran.named("ipx::add_register")]
    assert registers == ["CTRL", "GIER", "IP_IER", "IP_ISR", *(argument.name for argument in ARGUMENTS)]
    for name, known in (("CTRL", "ap_ctrl"), ("GIER", "gie"), ("IP_IER", "ier"), ("IP_ISR", "isr")):
        said = ran.properties(f"register:{name}")
        assert (int(said["address_offset"], 0), said["size"]) == (OFFSET[known], "32")
    for argument in ARGUMENTS:
        said = ran.properties(f"register:{argument.name}")
        first = f"{argument.name}_lo" if argument.is_pointer else argument.name
        assert (int(said["address_offset"], 0), int(said["size"])) == (OFFSET[first], argument.bits)
        used_on = ran.properties(f"register:{argument.name}:ASSOCIATED_BUSIF")
        assert used_on == ({"value": "m_axi_gmem"} if argument.is_pointer else {})
    assert ran.properties("bus:s_axi_control")["slave_memory_map_ref"] == "s_axi_control"


def test_an_earlier_kernel_is_replaced_and_the_name_may_be_given(tcl: object, folder: Path) -> None:
    (folder / "redline.xo").write_text("old")
    (folder / "work" / "packaged").mkdir(parents=True)
    (folder / "work" / "packaged" / "component.xml").write_text("old")
    run(tcl, folder / "gen_xo.tcl")
    assert not (folder / "redline.xo").read_text()
    assert not (folder / "work" / "packaged" / "component.xml").read_text()
    run(tcl, folder / "gen_xo.tcl", str(folder / "other.xo"))
    assert (folder / "other.xo").exists()


def test_what_is_missing_is_named(tcl: object, folder: Path) -> None:
    with pytest.raises(TclError, match="usage: vivado"):
        run(tcl, folder / "gen_xo.tcl", "a", "b")
    for name in ("redline.v", "kernel.xml"):
        moved = folder / f"{name}.moved"
        shutil.move(folder / name, moved)
        with pytest.raises(TclError, match=f"{name} is missing: run `redline kernel` again"):
            run(tcl, folder / "gen_xo.tcl")
        shutil.move(moved, folder / name)


def test_a_package_without_a_kernel_is_an_error(tcl: object, folder: Path) -> None:
    with pytest.raises(TclError, match=r"package_xo left no .*redline\.xo"):
        run(tcl, folder / "gen_xo.tcl", before="proc package_xo {args} {}")


def test_the_stand_ins_refuse_what_is_not_there(tcl: object, folder: Path) -> None:
    for call in ("add_files {/no/such/file}", "ipx::get_bus_interfaces m_axi_other", "ipx::current_core"):
        with pytest.raises(TclError, match="there is no"):
            run(tcl, folder / "gen_xo.tcl", before=call)
