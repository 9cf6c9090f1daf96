"""The serial device against a board in Python: nothing is lost on a bad line, and nothing wrong comes out of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from host import models
from host.compiler.compile import compile as compiled
from host.conformance.launches import compare
from host.devices.device import DeviceError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.serial import device as serial_device
from host.devices.serial.device import SerialDevice
from host.devices.serial.frames import MOST_FRAME, Deframer, encode
from host.devices.serial.port import LineLost
from host.devices.serial.session import Session
from host.verification.cases import CONFIGS, random_case
from hw.link.protocol import OFFSET as BOARD
from hw.registers import OFFSET
from tests.host.devices.serial.cable import Cable
from tests.host.devices.serial.model import GET, OPEN, PUT, RESET, WRITE, Board, stuff

CONFIG = CONFIGS[1]
FAST = {"timeout_s": 0.1, "attempts": 12}


@pytest.fixture
def board() -> Iterator[Board]:
    with Board(CONFIG) as made:
        yield made


def device(port: str, **options: Any) -> SerialDevice:
    return SerialDevice(CONFIG, port=port, **FAST | options)


def content(nbytes: int, seed: int = 1) -> np.ndarray:
    """Random bytes, flags and escapes among them more often than by chance."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(nbytes) < 0.2, rng.choice([0x7D, 0x7E], nbytes), rng.integers(0, 256, nbytes)).astype(
        np.uint8
    )


def test_it_takes_memory_and_clock_from_the_board(board: Board) -> None:
    with device(board.path) as serial:
        assert serial.memory_bytes == 1 << 17
        assert serial.clock_hz == 25_000_000
        assert serial.units == 1
        assert "board on /dev/pts" in serial.describe()


def test_more_requests_than_there_are_numbers_are_under_way_in_order(board: Board) -> None:
    data = content(1 << 17)
    with device(board.path) as serial:
        serial.write(0, data)
        assert bytes(board.executor.memory) == data.tobytes()
        assert (serial.read(0, 1 << 17) == data).all()
        assert serial.repeated == 0
    assert len(board.executed) > 2 * 256


NOISE = [
    pytest.param({"frames": 0.001}, id="1 frame in 1000"),
    pytest.param({"frames": 0.1}, id="1 frame in 10"),
    pytest.param({"lost": 0.001}, id="1 byte in 1000 lost"),
    pytest.param({"added": 0.001}, id="1 byte in 1000 added"),
]


@pytest.mark.parametrize("noise", NOISE)
def test_a_bad_line_costs_time_and_nothing_else(board: Board, noise: dict[str, float]) -> None:
    data = content(40_000)
    with Cable(board.path) as cable, device(cable.path) as serial:
        for name, rate in noise.items():
            setattr(cable, name, rate)
        for low in range(0, len(data), 8_000):
            serial.write(low, data[low : low + 8_000])
            assert (serial.read(low, 8_000) == data[low : low + 8_000]).all()
        assert bytes(board.executor.memory[: len(data)]) == data.tobytes()
        if cable.damaged:
            assert serial.repeated > 0
    writes = [address for op, _, address in board.executed if op == WRITE]
    assert writes == sorted(set(writes)), "a write is executed twice, or out of order"


@pytest.mark.parametrize("noise", NOISE)
def test_launches_are_started_once_and_right_on_a_bad_line(board: Board, noise: dict[str, float]) -> None:
    with (
        Cable(board.path, seed=5, **noise) as cable,
        device(cable.path) as serial,
        ReferenceDevice(CONFIG, memory_bytes=1 << 24) as oracle,
    ):
        launches = 0
        for number in range(200, 206):
            case = random_case(7, number, configs=(CONFIG,))
            runtime = Runtime(case.program, serial)
            found = runtime.forward(case.x, plan=case.plan, first_image=case.first_image)
            wanted = Runtime(case.program, oracle).forward(case.x, plan=case.plan, first_image=case.first_image)
            compare(found, wanted, case)
            assert found.report.faults_applied in (0, wanted.report.faults_applied)
            launches += sum(placement == "accelerator" for placement, _ in case.program.segments())
        assert board.starts == launches


def test_reading_a_clearing_register_again_gives_what_it_gave(board: Board) -> None:
    """The end of a launch is read once; the answer may be lost on its way."""
    with device(board.path) as serial:
        serial.session.exchange([])
        board.running, board.polls_left = True, 0
        answer, dropped = board.answer, []

        def lossy(request: bytes | None) -> bytes:
            result = answer(request)
            if request is not None and request[1] == GET and len(dropped) < 3:
                dropped.append(result)
                return b"\0"  # no frame of the protocol
            return result

        board.answer = lossy  # type: ignore[method-assign]
        assert serial._register("ap_ctrl") & 2, "the launch's end is lost with its answer"
        assert len(dropped) == 3


# -- refusals


def test_another_bitstream_is_refused_before_anything_is_written() -> None:
    other = replace(CONFIG, pool_columns=16)
    with Board(other) as board:
        before = board.executor.memory.copy()
        with pytest.raises(DeviceError, match=rf"another accelerator: configuration hash {other.hash:#018x}.*Load the"):
            device(board.path)
        assert (board.executor.memory == before).all()
        assert {op for op, *_ in board.executed} == {GET}


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (0x100, "is no Redline board"),
        (0x104, "speaks version 99 of the link, this host version 1; build its bitstream"),
        (OFFSET["interface_version"], "interface 99; this device is"),
    ],
)
def test_other_gateware_is_refused(offset: int, message: str) -> None:
    with Board(CONFIG, registers={offset: 99}) as board, pytest.raises(DeviceError, match=message):
        device(board.path)


def test_a_board_with_less_memory_than_asked_for_is_refused(board: Board) -> None:
    with pytest.raises(DeviceError, match="has 131072 bytes of memory, fewer than memory_bytes=1000000"):
        device(board.path, memory_bytes=1_000_000)


def test_a_program_that_the_board_cannot_hold_is_refused() -> None:
    program = compiled(models.lenet5(pretrained=True), CONFIG, calibrate=torch.rand(4, 1, 28, 28))
    x = np.zeros((1, 1, 28, 28), np.int8)
    with Board(CONFIG, 1 << 16) as board, device(board.path) as serial:
        with pytest.raises(DeviceError, match=r"needs \d+ bytes of device memory, the device has 65536"):
            Runtime(program, serial).forward(x)
        assert not board.starts


def test_a_port_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"/dev/nothing cannot be opened.*dialout"):
        device("/dev/nothing")
    with pytest.raises(DeviceError, match=r"needs either port= .* or simulated=True"):
        SerialDevice(CONFIG)
    with pytest.raises(DeviceError, match=r"needs either port= .* or simulated=True"):
        SerialDevice(CONFIG, port="/dev/nothing", simulated=True)


def test_a_port_that_is_in_use_is_refused(board: Board) -> None:
    with device(board.path), pytest.raises(DeviceError, match="cannot be opened.*in use by another program"):
        device(board.path)


@pytest.mark.timeout(120)  # and not forever
def test_a_port_without_a_board_is_refused_in_time() -> None:
    host, line = os.openpty()
    try:
        with pytest.raises(LineLost, match="no board answers on .*, asked 3 times: check that the cable"):
            device(os.ttyname(line), attempts=3)
    finally:
        os.close(host)
        os.close(line)


# -- what is lost in between


def runtime_of(serial: SerialDevice) -> tuple[Runtime, np.ndarray]:
    case = random_case(7, 200, configs=(CONFIG,))
    return Runtime(case.program, serial), case.x


def test_a_cable_pulled_in_a_launch_is_an_error_that_names_the_remedy(board: Board) -> None:
    with Cable(board.path) as cable, device(cable.path) as serial:
        runtime, x = runtime_of(serial)
        execute = board.execute

        def pulling(op: int, count: int, *rest: Any) -> Any:
            if op == GET and count == OFFSET["ap_ctrl"] and board.running:
                cable.cut_after = 0
            return execute(op, count, *rest)

        board.execute = pulling  # type: ignore[method-assign]
        with pytest.raises(LineLost, match=r"unplugged or has lost its power; plug it in|no board answers"):
            runtime.forward(x)
        # It stays an error: whoever asks on gets no stale bytes.
        for action in (lambda: runtime.forward(x), lambda: serial.read(0, 4), lambda: serial.write(0, np.zeros(4))):
            with pytest.raises(LineLost, match="plug it in|no board answers"):
                action()


def test_a_board_that_falls_silent_in_a_launch_is_an_error(board: Board) -> None:
    with device(board.path, attempts=3) as serial:
        runtime, x = runtime_of(serial)
        answer = board.answer
        board.answer = lambda request: b"\0" if board.running else answer(request)  # type: ignore[method-assign]
        with pytest.raises(LineLost, match="no board answers on .*, asked 3 times: check that the cable is plugged in"):
            runtime.forward(x)


@pytest.mark.parametrize("running", [True, False], ids=["in a launch", "between launches"])
def test_a_board_that_was_reset_is_an_error(board: Board, running: bool) -> None:
    """It works again at once, but its memory is not what the host thinks."""
    with device(board.path) as serial:
        runtime, x = runtime_of(serial)
        if running:
            answer = board.answer

            def failing(request: bytes | None) -> bytes:
                if board.running:
                    board.power_on()
                return answer(request)

            board.answer = failing  # type: ignore[method-assign]
        else:
            runtime.forward(x)
            board.power_on()
        with pytest.raises(LineLost, match="was reset, or opened by another program, and what was in"):
            runtime.forward(x)
        with pytest.raises(LineLost, match="make the device anew"):
            serial.read(0, 4)


def test_a_hanging_accelerator_is_reset_and_the_device_works_on(board: Board) -> None:
    with device(board.path) as serial, ReferenceDevice(CONFIG, memory_bytes=1 << 24) as oracle:
        runtime, x = runtime_of(serial)
        board.stuck = True
        board.overrides[OFFSET["cycles_hi"]] = 1000
        with pytest.raises(DeviceError, match="the accelerator hangs: it has not finished after .* it has been reset"):
            runtime.forward(x)
        assert board.executed[-1][0] == RESET
        board.stuck, board.overrides = False, {}
        compare(runtime.forward(x), Runtime(runtime.program, oracle).forward(x), "after a hang")


def test_an_accelerator_that_stops_by_itself_is_an_error(board: Board) -> None:
    with device(board.path) as serial:
        runtime, x = runtime_of(serial)

        def stopping() -> None:
            board.running = False

        board.finish = stopping  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="has stopped without finishing the launch"):
            runtime.forward(x)


def test_memory_touched_outside_makes_the_results_void(board: Board) -> None:
    with device(board.path) as serial:
        runtime, x = runtime_of(serial)
        finish = board.finish

        def straying() -> None:
            finish()
            board.outside = 1

        board.finish = straying  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="touched memory outside the board's 131072 bytes; its results are void"):
            runtime.forward(x)


def test_an_interrupted_transfer_leaves_the_device_usable(board: Board) -> None:
    """Ctrl-C between a request and its answer: the next transfer finds its place again."""
    data = content(10_000)
    with device(board.path) as serial:
        execute, interrupted = board.execute, []

        def interrupting(op: int, *rest: Any) -> Any:
            if op == WRITE and not interrupted and rest[1] > 3_000:
                interrupted.append(op)
                serial.session._line.read = interrupt  # type: ignore[method-assign]
            return execute(op, *rest)

        read = serial.session._line.read

        def interrupt() -> bytes:
            serial.session._line.read = read  # type: ignore[method-assign]
            raise KeyboardInterrupt

        board.execute = interrupting  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            serial.write(0, data)
        assert interrupted
        serial.write(0, data[::-1])
        assert (serial.read(0, len(data)) == data[::-1]).all()


def test_a_start_is_not_repeated_when_the_host_comes_back(board: Board) -> None:
    with device(board.path) as serial:
        runtime, x = runtime_of(serial)
        runtime.forward(x)
        starts = board.starts
    with device(board.path) as serial:
        assert serial.memory_bytes == 1 << 17
        assert board.starts == starts
        assert [op for op, *_ in board.executed[-3:]].count(PUT) == 0


# -- boards that do not behave


def test_a_counter_whose_high_word_never_repeats_is_an_error(board: Board) -> None:
    with device(board.path) as serial:
        runtime, x = runtime_of(serial)
        get, asked = board.get, itertools.count(1)
        board.get = lambda offset: next(asked) if offset == OFFSET["cycles_hi"] else get(offset)  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="the counter cycles changes its high word each time it is read"):
            runtime.forward(x)
        board.get = get  # type: ignore[method-assign]
        runtime.forward(x)


@pytest.mark.parametrize("counter", ["jumps", "crawls", "stands", "falls"])
def test_an_accelerator_that_stays_busy_whatever_its_counter_does_is_an_error(
    counter: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_device, "SLACK_S", 0.5)
    monkeypatch.setattr(serial_device, "SLACK", 0)
    with device(board.path) as serial:
        runtime, x = runtime_of(serial)
        get, count = board.get, itertools.count(1)
        said = {
            "jumps": lambda: next(count) * 7919 % 1000 + 1,
            "crawls": lambda: next(count),
            "stands": lambda: 5,
            "falls": lambda: 1000 - next(count),
        }[counter]
        board.stuck = True
        board.get = lambda offset: said() if offset == OFFSET["cycles_lo"] else get(offset)  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="the accelerator hangs: it has not finished after .* it has been reset"):
            runtime.forward(x)
        board.get, board.stuck = get, False  # type: ignore[method-assign]
        runtime.forward(x)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 100])
def test_an_answer_of_another_size_to_the_first_request_is_an_error(board: Board, size: int) -> None:
    answer = board.answer

    def odd(content: bytes | None) -> bytes:
        said = answer(content)
        return said[:2] + bytes(size) + said[-1:] if said[1] == OPEN else said

    board.answer = odd  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=f"answers OPEN with {size} bytes, not 4: its gateware is of another version"):
        device(board.path)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_answers_of_a_byte_or_two_are_no_answers(board: Board, size: int) -> None:
    board.answer = lambda content: bytes(size) or b"\0"  # type: ignore[method-assign]
    with pytest.raises(LineLost, match="no board answers on"):
        device(board.path, attempts=3)


@pytest.mark.parametrize(("name", "value"), [("clock_hz", 0), ("clock_hz", 7), ("memory_bytes", 0)])
def test_a_board_that_says_nonsense_of_itself_is_refused(name: str, value: int) -> None:
    with (
        Board(CONFIG, registers={BOARD[name]: value}) as made,
        pytest.raises(DeviceError, match="damaged or of another"),
    ):
        device(made.path)


@pytest.mark.parametrize(
    "babble",
    [b"\x7e\x00\x01\x02\x03\x04\x05\x06\x7e", b"\x7e", bytes(range(100, 120))],
    ids=["frames", "flags", "noise"],
)
def test_a_line_that_is_never_silent_and_says_nothing_is_given_up(babble: bytes) -> None:
    class Endless:
        name = "endless"

        def read(self) -> bytes:
            return babble * 50

        def write(self, sent: bytes) -> None: ...

        def forget(self) -> None: ...

    with pytest.raises(LineLost, match="no board answers on endless, asked 3 times"):
        Session(Endless(), 1_000_000, timeout_s=0.05, attempts=3)


def test_a_board_that_babbles_after_the_first_answer_is_given_up(board: Board) -> None:
    with device(board.path, attempts=3) as serial:
        serial.session._line.read = lambda: stuff(b"\1\2\1") * 50  # type: ignore[method-assign]
        with pytest.raises(LineLost, match="no board answers on .*, asked 3 times"):
            serial.read(0, 4)


def test_a_stream_without_a_flag_takes_no_memory() -> None:
    deframer = Deframer()
    for _ in range(1000):
        assert deframer.push(bytes(4096)) == []
        assert len(deframer._rest) <= MOST_FRAME
    content = b"sound"
    assert deframer.push(encode(content)) == [None, content]
