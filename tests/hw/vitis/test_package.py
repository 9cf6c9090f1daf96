"""The package's files: kernel.xml by the vendor's format, the Verilog it describes, the link configuration."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from hw import record
from hw.config import Config, ConfigError
from hw.registers import ARGUMENTS, KERNEL_SPAN_BITS, REGISTERS
from hw.vitis.boards import BOARDS
from hw.vitis.package import PackageError, contents, link_configuration, write
from tests.hw.test_verilog import lint
from tests.hw.vitis.kernels import CONFIGS, SMALL, package, ports

NAMES = {"redline.v", "kernel.xml", "interface.tcl", "package_kernel.tcl", "gen_xo.tcl", "link.cfg", "README.md"}

# "RTL Kernel XML File" in UG1393 (2023.2) and UG1702 (2025.2): the attributes of each element.
KERNEL = {"name", "language", "vlnv", "attributes", "preferredWorkGroupSizeMultiple", "workGroupSize", "interrupt"}
PORT = {"name", "mode", "range", "dataWidth", "portType", "base"}
ARG = {"name", "addressQualifier", "id", "port", "size", "offset", "type", "hostOffset", "hostSize"}


@pytest.mark.parametrize("name", CONFIGS)
def test_kernel_xml_has_the_vendors_format(name: str) -> None:
    text = package(CONFIGS[name])["kernel.xml"]
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = ET.fromstring(text.encode())
    assert (root.tag, root.attrib) == ("root", {"versionMajor": "1", "versionMinor": "6"})
    (kernel,) = root
    assert kernel.tag == "kernel"
    assert set(kernel.attrib) == {*KERNEL, "hwControlProtocol"}
    fixed = {"name": "redline", "language": "ip_c", "attributes": "", "workGroupSize": "1", "interrupt": "true"}
    assert fixed.items() <= kernel.attrib.items()
    assert kernel.get("hwControlProtocol") == "ap_ctrl_hs"
    assert re.fullmatch(r"[\w.]+:\w+:redline:\d+\.\d+", kernel.get("vlnv", ""))
    assert [child.tag for child in kernel] == ["ports", "args"]
    for port in kernel[0]:
        assert (port.tag, set(port.attrib)) == ("port", PORT)
        assert (port.get("portType"), port.get("base")) == ("addressable", "0x0")
    for number, arg in enumerate(kernel[1]):
        assert (arg.tag, set(arg.attrib)) == ("arg", ARG)
        assert (arg.get("id"), arg.get("hostOffset")) == (str(number), "0x0")
        pointer = arg.get("type", "").endswith("*")
        assert arg.get("addressQualifier") == str(int(pointer))
        assert arg.get("port") == ("m_axi_gmem" if pointer else "s_axi_control")
        assert int(arg.get("size", ""), 0) == int(arg.get("hostSize", ""), 0) == (8 if pointer else 4)


@pytest.mark.parametrize("name", CONFIGS)
def test_kernel_xml_describes_the_verilogs_ports(name: str) -> None:
    files = package(CONFIGS[name])
    found = ports(files["redline.v"])
    kernel = ET.fromstring(files["kernel.xml"].encode())[0]
    told = {port.get("name"): port for port in kernel[0]}
    assert found["ap_clk"] == found["ap_rst_n"] == ("input", 1)
    assert found["interrupt"] == ("output", 1)
    slave, master = told["s_axi_control"], told["m_axi_gmem"]
    assert (slave.get("mode"), master.get("mode")) == ("slave", "master")
    assert 1 << found["s_axi_control_awaddr"][1] == int(slave.get("range", ""), 0) == 1 << KERNEL_SPAN_BITS
    assert found["s_axi_control_wdata"] == ("input", int(slave.get("dataWidth", "")))
    assert found["m_axi_gmem_wdata"] == ("output", int(master.get("dataWidth", "")))
    assert found["m_axi_gmem_rdata"] == ("input", int(master.get("dataWidth", "")))
    assert 1 << found["m_axi_gmem_araddr"][1] == int(master.get("range", ""), 0) + 1, "64-bit addresses"
    # AXI4 and AXI4-Lite, complete, in either direction.
    for prefix, out, back in (("s_axi_control_", "input", "output"), ("m_axi_gmem_", "output", "input")):
        for channel in ("aw", "w", "b", "ar", "r"):
            answers = channel in ("b", "r")
            assert found[f"{prefix}{channel}valid"][0] == (back if answers else out)
            assert found[f"{prefix}{channel}ready"][0] == (out if answers else back)


def test_arguments_are_registers_of_the_map_and_leave_each_other_room() -> None:
    spans = sorted((argument.offset, argument.bits // 8, argument.name) for argument in ARGUMENTS)
    assert spans[0][0] == 0x10, "XRT writes them as a block that begins there"
    for (at, size, name), (after, _, other) in zip(spans, spans[1:], strict=False):
        assert at + size <= after, f"{name} overlaps {other}"
    last = spans[-1][0] + spans[-1][1]
    assert all(not 0x10 <= each.offset < last for each in REGISTERS if each.access == "r"), "the block holds no others"
    assert [argument.name for argument in ARGUMENTS] == [name for _, _, name in spans], "numbered as they lie"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_kernels_verilog_is_lint_clean(name: str, tmp_path: Path) -> None:
    done = lint(package(CONFIGS[name])["redline.v"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_record_lies_the_same_for_hardware_and_host() -> None:
    assert record.LAYOUT.size == 8 * record.DTYPE.itemsize == 8 * record.RECORD_BYTES
    for name in record.DTYPE.names or ():
        assert record.DTYPE.fields is not None
        assert record.LAYOUT[name].offset == 8 * record.DTYPE.fields[name][1]
        assert record.LAYOUT[name].width == 8 * record.DTYPE[name].itemsize
        assert record.DTYPE[name].kind == "u"


def options(text: str) -> dict[str, dict[str, list[str]]]:
    """A v++ configuration: sections of `key=value`, where keys may repeat."""
    found: dict[str, dict[str, list[str]]] = {"": {}}
    section = ""
    for line in text.splitlines():
        if re.fullmatch(r"\[\w+\]", line):
            section = line[1:-1]
            found[section] = {}
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found[section].setdefault(key, []).append(value)
    return found


def test_the_link_configuration_connects_every_compute_unit() -> None:
    for board in BOARDS.values():
        said = options(link_configuration(board, 250, 2, keep_clock=False))
        assert said == {
            "": {"platform": [board.platform], "kernel_frequency": ["0:250"]},
            "connectivity": {
                "nk": ["redline:2:redline_1.redline_2"],
                "sp": [f"redline_{number}.m_axi_gmem:{board.memory}" for number in (1, 2)],
            },
        }
        kept = options(link_configuration(board, 250, 2, keep_clock=True))
        assert kept.pop("advanced") == {"param": ["compiler.skipTimingCheckAndFrequencyScaling=1"]}
        assert kept == said


def test_the_readme_names_hash_platform_and_what_nobody_has_verified() -> None:
    text = package(SMALL)["README.md"]
    assert "$" not in text, "a placeholder was left"
    for needed in (
        f"{SMALL.hash:#018x}",
        BOARDS["u250"].platform,
        "vivado -mode batch -source gen_xo.tcl",
        "v++ --link --target hw --config link.cfg --output redline.xclbin redline.xo",
        "No vendor tool and no board has seen this package",
        "Not verified: that Vivado and v++ accept any of this",
        "saboteur=True",
    ):
        assert needed in text, needed
    named = set(re.findall(r"`([\w.]+\.(?:v|xml|tcl|cfg))`", text))
    assert named <= NAMES
    assert named | {"README.md"} == NAMES


def test_the_package_can_be_written_over_an_earlier_one(tmp_path: Path) -> None:
    files = package(SMALL)
    assert set(files) == NAMES
    for _ in range(2):
        paths = write(tmp_path / "deep" / "kernel", files)
    assert {path.name for path in paths} == NAMES
    assert all(path.read_text() == files[path.name] for path in paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="name another folder with --out"):
        write(tmp_path / "file", files)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (replace(SMALL, probe=True), {}, "probe adds ports"),
        (SMALL, {"units": 0}, "units must be from 1 to 15"),
        (SMALL, {"units": 16}, "units must be from 1 to 15"),
        (SMALL, {"mhz": 0}, "mhz must be from 1 to 1000"),
        (SMALL, {"mhz": 1001}, "mhz must be from 1 to 1000"),
    ],
)
def test_what_cannot_be_a_kernel_is_refused(config: Config, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        contents(config, BOARDS["u250"], **changes)  # type: ignore[arg-type]
