"""Registers assigned in clocked processes: the same design, without the wires between."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from amaranth.back import verilog
from amaranth.hdl import Const, Module, Mux, Signal, Value

from hw.clocked import clocked
from hw.config import Config
from hw.verilog import generate
from sim.tools import find_toolchain

CYCLES = 4096
DESIGNS = 24


def convert(m: Module, name: str, ports: list[Signal]) -> str:
    return str(verilog.convert(m, name=name, ports=ports, emit_src=False, strip_internal_attrs=True))


def test_a_register_that_holds_still_costs_its_condition_only() -> None:
    m = Module()
    held, enable, d = (Signal(width, name=name) for name, width in (("held", 8), ("enable", 1), ("d", 8)))
    with m.If(enable):
        m.d.sync += held.eq(d)
    text = clocked(convert(m, "top", [held, enable, d]))
    assert "always @*" not in text
    assert re.search(
        r"always @\(posedge clk\) begin\n    if \(enable\) begin\n      held  <= d ?;\n    end\n"
        r"    if \(rst\) begin\n      held  <= 8'h00;\n    end\n  end\n",
        text,
    ), text
    assert clocked(text) == text


def test_what_else_reads_the_next_value_keeps_it() -> None:
    text = convert(*_counter())
    wire = re.search(r"<= (\\\$\d+) ;", text)
    assert wire is not None
    read = text.replace("endmodule", f"  assign spy = {wire[1]} ;\nendmodule")
    assert clocked(text) != text
    assert clocked(read) == read


def _counter() -> tuple[Module, str, list[Signal]]:
    m = Module()
    count, enable = Signal(8), Signal()
    with m.If(enable):
        m.d.sync += count.eq(count + 1)
    return m, "top", [count, enable]


def test_the_accelerators_registers_have_one_process_each() -> None:
    text = generate(Config(lanes=2, vec=4, port_bits=64))
    decided = set(re.findall(r"^    (\\\$\d+)  = ", text, re.MULTILINE))
    copied = [wire for wire in re.findall(r"<= (\\\$\d+) ;", text) if wire in decided]
    assert len(re.findall(r"always @\(posedge", text)) > 300
    # Those that remain have a next value put together from parts.
    assert len(copied) < 30


def _value(rng: random.Random, signals: list[Signal]) -> Value:
    a, b = rng.choice(signals), rng.choice(signals)
    low = rng.randrange(len(a))
    return rng.choice([a + b, a ^ b, a[low:], a.as_signed() >> b[:2], Mux(a[0], b, a), Const(rng.getrandbits(9), 9)])


def _decide(m: Module, rng: random.Random, registers: list[Signal], signals: list[Signal], depth: int) -> None:
    """Random statements: whole and partial assignments, nested conditions, cases."""
    for _ in range(rng.randint(1, 3)):
        target, kind = rng.choice(registers), rng.random()
        if depth == 0 or kind < 0.3:
            m.d.sync += target.eq(_value(rng, signals))
        elif kind < 0.5:
            low = rng.randrange(len(target))
            m.d.sync += target[low : rng.randint(low + 1, len(target))].eq(_value(rng, signals))
        elif kind < 0.8:
            with m.If(_value(rng, signals).any()):
                _decide(m, rng, registers, signals, depth - 1)
            with m.Else():
                _decide(m, rng, registers, signals, depth - 1)
        else:
            with m.Switch(rng.choice(signals)[:2]):
                for case in (0, 1):
                    with m.Case(case):
                        _decide(m, rng, registers, signals, depth - 1)


@pytest.mark.parametrize("seed", [0])
def test_random_designs_behave_the_same(seed: int, tmp_path: Path) -> None:
    """Both texts of each design side by side in Verilator, on the same random inputs, with resets."""
    tools, texts, pairs, changed, compared = find_toolchain(), [], [], 0, 0
    for number in range(DESIGNS):
        rng = random.Random(f"{seed} {number}")
        m = Module()
        inputs = [Signal(8, name=f"in_{at}") for at in range(3)]
        registers = [Signal(rng.randint(1, 12), name=f"r_{at}", reset_less=rng.random() < 0.3) for at in range(5)]
        _decide(m, rng, registers, [*inputs, *registers], 3)
        ports = [*inputs, *registers]
        plain = convert(m, f"plain_{number}", ports)
        if re.search(r"\*\)\n *\n", plain):  # no Verilog: a case in which nothing of a register is decided
            continue
        other = clocked(plain.replace(f"plain_{number}", f"clocked_{number}"))
        changed += other.count("always @*") < plain.count("always @*")
        texts += [plain, other]
        # A register that nothing assigns is a port all the same, but one without a clock may be missing.
        clock = ".clk(clk), .rst(rst), " if "input rst;" in plain else ".clk(clk), " if "input clk;" in plain else ""
        driven = [r for r in registers if f"output {r.name};" in plain or f"] {r.name};" in plain]
        wires = ", ".join(f".in_{at}(bits[{8 * at + 7}:{8 * at}])" for at in range(3))
        for kind in ("plain", "clocked"):
            outputs = ", ".join(f".{r.name}({kind}_{number}_{r.name})" for r in driven)
            widths = "".join(f"  wire [{len(r) - 1}:0] {kind}_{number}_{r.name};\n" for r in driven)
            pairs.append(f"{widths}  {kind}_{number} {kind}_{number}_i({clock}{wires}, {outputs});\n")
        compared += 1
        pairs += [
            f"  assign differ[{number}] = "
            + " | ".join(f"(plain_{number}_{r.name} != clocked_{number}_{r.name})" for r in driven)
            + ";\n"
        ]
    assert compared > DESIGNS / 2
    assert changed > compared / 4, "the transformation did nothing"
    top = f"module top(input clk, input rst, input [23:0] bits, output [{DESIGNS - 1}:0] differ);\n"
    top += f"{''.join(pairs)}endmodule\n"
    (tmp_path / "designs.v").write_text(top + "\n".join(texts))
    (tmp_path / "main.cpp").write_text(
        '#include "Vtop.h"\n#include "verilated.h"\n#include <cstdio>\n#include <random>\n'
        "int main() {\n  VerilatedContext context;\n  Vtop top{&context};\n  std::mt19937 random{1};\n"
        f"  for (int cycle = 0; cycle < {CYCLES}; ++cycle) {{\n"
        "    top.clk = 0; top.rst = random() % 32 == 0; top.bits = random() & 0xffffff; top.eval();\n"
        "    top.clk = 1; top.eval();\n"
        '    if (top.differ) { std::printf("cycle %d: %x\\n", cycle, top.differ); return 1; }\n'
        "  }\n  return 0;\n}\n"
    )
    command = [
        str(tools.verilator.path),
        "--cc",
        "--exe",
        "--top-module",
        "top",
        "--prefix",
        "Vtop",
        "-Wno-fatal",
        "-Wno-lint",
    ]
    command += ["-Wno-style", "-Mdir", "obj", "-o", "designs", "designs.v", "main.cpp"]
    environment = {**os.environ, **tools.verilator.environment}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    make = [str(tools.make.path), "-C", "obj", "-f", "Vtop.mk", "OPT_FAST=-O0", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0"]
    subprocess.run(make, cwd=tmp_path, env=environment, check=True, capture_output=True)
    done = subprocess.run([str(tmp_path / "obj" / "designs")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
