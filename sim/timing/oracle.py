"""The gate-level oracle: Icarus Verilog simulates the routed cells of one lane, event by event, with their delays.

Simulated are all cells between the lane's product registers and its accumulator: carry cells, load multiplexers, wires
and registers, as nextpnr placed and routed them, with the functions that their look-up tables hold. Nothing of the word
model is used: no operand, no adder, no longest path. Products, bias and select are launched by the test bench with
their registers' own delays; the clock enable is always on.

A change at a cell's input reaches its output after the wire's delay and the cell's delay for that pin of it; every
change does (transport delays). With `reject_ps`, a cell's output does not follow a pulse shorter than that, or than the
cell's fastest way to this output where that is less; the delays remain the same.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hw.errors import RedlineError
from sim.timing.analysis import Adder, complete
from sim.timing.netlist import LOGIC, REGISTER, Cell, Netlist, NetlistError

IDLE_STEPS = 3
"""Clock cycles of zeros before the stream: the history that a descriptor starts with."""


class OracleError(RedlineError, RuntimeError):
    """The gate-level simulation cannot be run; the message names the remedy."""


def find_icarus() -> tuple[str, str]:
    """Paths of `iverilog` and `vvp`.

    Raises
    ------
    OracleError
        If they are missing.
    """
    found = tuple(shutil.which(name) for name in ("iverilog", "vvp"))
    if None in found:
        raise OracleError("Icarus Verilog is missing; run: sudo apt-get install iverilog")
    return str(found[0]), str(found[1])


@dataclass(frozen=True)
class Trace:
    """What the registers of one lane took, and what was launched into them.

    Attributes
    ----------
    words : dict of str to uint32 array, shape (steps,)
        For each bank the word that its register takes at the clock edge that ends a step, sign-extended.
    """

    words: dict[str, npt.NDArray[np.uint32]]


def _name(cell: str, pin: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}_", f"{cell}__{pin}")


def lane_verilog(netlist: Netlist, adders: list[Adder], *, reject_ps: int = 0) -> str:
    """Verilog of one lane's cells and a test bench for them.

    The bench takes `+period=`, `+steps=`, `+stimulus=` (hex words: select, bias, products from the last to the first)
    and prints the banks' registers after each clock edge, from the last bank to the first.

    Raises
    ------
    NetlistError
        If a cell on the way is none that it knows.
    """
    adders = [complete(netlist, adder) for adder in adders]
    level_1 = [adder for adder in adders if adder.name.startswith("tree_1_")]
    products = [adder.operands[side] for adder in level_1 for side in ("a", "b")]
    accumulator = adders[-1]
    outside = [*products, accumulator.operands["bias"], accumulator.operands["select"]]
    lines = ["`timescale 1ps/100fs", "module bench;"]
    lines += ["reg clk = 0; real period; integer steps, step, file; reg [8*256-1:0] path;"]
    width = sum(len(word) for word in outside)
    lines += [f"reg [{width - 1}:0] stimulus [0:{MAX_STEPS - 1}]; reg [{width - 1}:0] launched = 0;"]
    done: set[tuple[str, str]] = set()
    # Registers outside: the edge is half a picosecond after the whole one, so that a change at the edge still counts.
    place = 0
    for word in outside:
        for name, pin in word:
            if (name, pin) not in done:
                done.add((name, pin))
                net, launch = _name(name, pin), netlist.cells[name].launch_ps
                lines += [f"reg {net} = 0;", f"always @(posedge clk) {net} <= #({launch - 0.5}) launched[{place}];"]
            place += 1
    pending: list[tuple[Cell, str]] = []
    registers = []
    for adder in adders:
        for name, pin in adder.registers:
            cell, net = netlist.cells[name], _name(name, pin)
            done.add((name, pin))
            if cell.kind != REGISTER:
                raise NetlistError(f"{name}: a bank's register is no flip-flop")
            source = netlist.driver(cell, cell.data_pin)
            assert source is not None
            pending.append(source)
            lines += [f"reg {net} = 0;"]
            lines += _arc(
                _name(*_key(source)), f"{net}_D", cell.wires[cell.data_pin] + cell.setups.get(cell.data_pin, 0)
            )
            lines += [f"always @(posedge clk) {net} <= #({cell.launch_ps - 0.5}) {net}_D;"]
            registers.append(f"{net}_D")
    declared: list[str] = []
    body: list[str] = []
    while pending:
        source = pending.pop()
        if _key(source) in done:
            continue
        done.add(_key(source))
        declared.append(f"wire {_name(*_key(source))};")
        text, feeders = _gate(netlist, *source, reject_ps)
        body += text
        pending += feeders
    lines += declared + body
    lines += [
        "initial begin",
        '  if (!$value$plusargs("period=%f", period) || !$value$plusargs("steps=%d", steps)) $finish;',
        '  if (!$value$plusargs("stimulus=%s", path)) $finish;',
        "  $readmemh(path, stimulus, 0, steps - 1);",
        '  if (!$value$plusargs("output=%s", path)) $finish;',
        '  file = $fopen(path, "w");',
        "  launched = 0;",
        "  #(0.5);",
        "  for (step = 0; step < steps; step = step + 1) begin",
        "    launched = stimulus[step]; clk = 1;",
        "    #(period - 1.0);",
        "    clk = 0;",
        "    #(1.0);",
        f'    $fdisplay(file, "%h", {{{", ".join(reversed(registers))}}});',
        "  end",
        "  $fclose(file);",
        "  $finish;",
        "end",
        "endmodule",
    ]
    return "\n".join(lines) + "\n"


MAX_STEPS = 1 << 16


def _key(source: tuple[Cell, str]) -> tuple[str, str]:
    return source[0].name, source[1]


def _arc(source: str, target: str, delay: float) -> list[str]:
    """A wire that carries every change after `delay`."""
    if delay == 0:
        return [f"wire {target}; assign {target} = {source};"]
    return [f"reg {target} = 0; always @({source}) {target} <= #({delay}) {source};"]


def _gate(netlist: Netlist, cell: Cell, output: str, reject_ps: int) -> tuple[list[str], list[tuple[Cell, str]]]:
    """One output of a look-up table or carry cell."""
    if cell.kind != LOGIC or output not in ("F", "FCO"):
        raise NetlistError(f"{cell.name}: {cell.kind}.{output} is no cell that the gate-level simulation knows")
    delays, sources = {}, {}
    for pin in ("A", "B", "C", "D", "FCI"):
        source = netlist.driver(cell, pin)
        if source is not None and (pin, output) in cell.delays:
            delays[pin], sources[pin] = cell.delays[pin, output], source
    rejected = min([reject_ps, *delays.values()])
    net = _name(cell.name, output)
    lines, value = [], {"FCI": "1'b0", **dict.fromkeys("ABCD", "1'b1")}
    for pin, source in sources.items():
        value[pin] = f"{net}_{pin}"
        lines += _arc(_name(*_key(source)), value[pin], cell.wires.get(pin, 0) + delays[pin] - rejected)
    table = f"16'h{cell.lut:04x}"
    lines += [f"wire [15:0] {net}_T = {table};"]
    index = "{" + ", ".join(value[pin] for pin in "DCBA") + "}"
    function = f"{net}_T[{index}]"
    if cell.carries:
        carry = value["FCI"]
        injected = cell.parameters.get("CCU2_INJECT1") == "YES"
        if output == "F":
            function = function if injected else f"{function} ^ {carry}"
        else:
            low = f"{value['B']}, {value['A']}"
            generate = "1'b0" if injected else f"{net}_T[{{2'b00, {low}}}]"
            function = f"{function} ? {carry} : {generate}"
    inertial = f"#({rejected}) " if rejected else ""
    lines += [f"assign {inertial}{net} = {function};"]
    return lines, list(sources.values())


class Oracle:
    """One lane, compiled once, simulated at any period; a context, which removes its files at the end.

    Parameters
    ----------
    netlist : Netlist
    adders : list of Adder
        The lane's banks.
    reject_ps : int
        Pulses shorter than this are swallowed; 0: none.

    Raises
    ------
    OracleError
        If Icarus Verilog is missing or fails.
    """

    def __init__(self, netlist: Netlist, adders: list[Adder], *, reject_ps: int = 0) -> None:
        self._compiler, self._runner = find_icarus()
        self._folder = tempfile.TemporaryDirectory(prefix="redline-oracle-")
        self._adders = [complete(netlist, adder) for adder in adders]
        source = Path(self._folder.name) / "lane.v"
        source.write_text(lane_verilog(netlist, adders, reject_ps=reject_ps))
        self._model = source.with_suffix(".vvp")
        try:
            self._call([self._compiler, "-g2005", "-o", str(self._model), str(source)])
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @staticmethod
    def _call(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            raise OracleError(f"{Path(command[0]).name} failed:\n{(done.stdout + done.stderr)[-2000:]}")

    def run(
        self,
        period_ps: int,
        products: npt.NDArray[np.uint32],
        bias: npt.NDArray[np.int32],
        first: npt.NDArray[np.bool_],
    ) -> Trace:
        """Simulate a stream, free running from zeros.

        Parameters
        ----------
        period_ps : int
        products : uint32 array, shape (cycles, vec)
            Launched by the product registers, cycle by cycle.
        bias : int32 array, shape (cycles,)
        first : bool array, shape (cycles,)
            Launched in the same cycle as the products: aligned by the caller.

        Returns
        -------
        Trace
            Words of shape (cycles,): what the registers take at the edge that ends the cycle.
        """
        cycles = len(products)
        if cycles > MAX_STEPS:
            raise OracleError(f"{cycles} steps are more than the {MAX_STEPS} that one simulation takes")
        tree = [adder for adder in self._adders if adder.name.startswith("tree_1_")]
        words = [adder.operands[side] for adder in tree for side in ("a", "b")]
        folder = Path(self._folder.name)
        with (folder / "stimulus.hex").open("w") as file:
            for cycle in range(cycles):
                value, place = 0, 0
                for index, word in enumerate(words):
                    value |= (int(products[cycle, index]) & ((1 << len(word)) - 1)) << place
                    place += len(word)
                value |= (int(bias[cycle]) & 0xFFFFFFFF) << place
                value |= int(first[cycle]) << (place + 32)
                file.write(f"{value:x}\n")
        self._call(
            [
                self._runner,
                "-N",
                str(self._model),
                f"+period={period_ps}",
                f"+steps={cycles}",
                f"+stimulus={folder / 'stimulus.hex'}",
                f"+output={folder / 'output.hex'}",
            ]
        )
        lines = (folder / "output.hex").read_text().split()
        if len(lines) != cycles:
            raise OracleError(f"the gate-level simulation stopped after {len(lines)} of {cycles} steps")
        taken: dict[str, npt.NDArray[np.uint32]] = {adder.name: np.zeros(cycles, np.uint32) for adder in self._adders}
        for cycle, line in enumerate(lines):
            value = int(line, 16)
            for adder in self._adders:
                width = len(adder.registers)
                taken[adder.name][cycle] = value & ((1 << width) - 1)
                value >>= width
        for adder in self._adders:
            unused = 32 - len(adder.registers)
            taken[adder.name] = ((taken[adder.name] << np.uint32(unused)).view(np.int32) >> unused).view(np.uint32)
        return Trace(taken)
