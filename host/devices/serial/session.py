"""A session with a board: requests in order, each executed once, whatever the line does to the frames.

Go-back-N (e.g. Tanenbaum & Wetherall, Computer Networks, 3.4.2): several requests are under way at a time, the board
executes them in order only, and from a missing one on all are sent again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from host.devices.device import DeviceError
from host.devices.serial.frames import Deframer, encode
from host.devices.serial.port import LineLost
from hw.link.protocol import FLAG, REQUEST, RESPONSE, VALUE, Op, Status

NUMBERS = 256
MOST_UNDER_WAY = 64
"""Requests sent and not answered; fewer than half of all numbers, so that old ones can be told from new ones."""
PIPELINED = (Op.READ, Op.WRITE, Op.PUT)
"""Requests that may be answered again whenever they are repeated; of the others, only the last may."""
ANSWERED_AT_ONCE = (Op.WRITE, Op.PUT)
"""Requests whose answer says no more than that they, and all before, have been executed."""
OVERHEAD = 16
"""Bytes of a frame that are no data, about."""
BITS = 10
"""Of a byte on the line."""


class Line(Protocol):
    """What carries bytes; `host.devices.serial.port.Port` is one."""

    name: str

    def read(self) -> bytes:
        """What has arrived; empty after a short wait without any."""

    def write(self, sent: bytes) -> None:
        """Send bytes."""

    def forget(self) -> None:
        """Drop what has arrived so far."""


@dataclass(frozen=True)
class Request:
    """One request; see `hw.link.protocol.Op`."""

    op: Op
    count: int = 0
    address: int = 0
    data: bytes = b""


class Answer(NamedTuple):
    """What a frame from the board says."""

    seq: int
    op: int
    data: bytes
    status: int


class Session:
    """Requests to a board, and their answers.

    Parameters
    ----------
    line : Line
    baud : int
    timeout_s : float
        Silence after which a request, or its answer, counts as lost; the time that the bytes take comes on top.
    attempts : int
        Times that a request is sent before the board counts as lost.

    Attributes
    ----------
    room : int
        Bytes of requests that the board can hold; to be set once it is known.
    repeated : int
        Requests sent more than once.

    Raises
    ------
    LineLost
        If no board answers.
    """

    def __init__(self, line: Line, baud: int, *, timeout_s: float = 0.5, attempts: int = 8) -> None:
        self._line, self._baud = line, baud
        self._timeout_s, self._attempts = timeout_s, attempts
        self._deframer = Deframer()
        self._waiting: list[bytes | None] = []
        self.room = REQUEST.size
        self.repeated = 0
        self._token = secrets.randbits(32) | 1
        self._last = secrets.randbelow(NUMBERS)
        self._broken: str | None = None
        self._in_step = False
        self._open()
        self._in_step = self._resume()

    def exchange(self, requests: Sequence[Request]) -> list[bytes]:
        """Have requests executed, in order; the data of their answers.

        Raises
        ------
        LineLost
            If the board does not answer. The session is over then.
        DeviceError
            If it refuses one, or was reset and has lost its memory.
        """
        if self._broken is not None:
            raise LineLost(self._broken)
        try:
            if not self._in_step:
                self._in_step = self._resume()
            # Whatever ends this early, also Ctrl-C, leaves requests under way.
            self._in_step = False
            answers = self._exchange(requests)
            self._in_step = True
            return answers
        except LineLost as error:
            self._broken = str(error)
            raise

    def ask(self, request: Request) -> int:
        """A single request's value."""
        (data,) = self.exchange([request])
        return int.from_bytes(data, "little")

    # -- requests under way

    def _exchange(self, requests: Sequence[Request]) -> list[bytes]:
        first = self._last + 1
        answers: list[bytes | None] = [None] * len(requests)
        base = sent = most_sent = silences = 0
        gone_back: int | None = None
        deadline = 0.0
        while base < len(requests):
            while sent < len(requests) and self._may_send(requests, base, sent):
                if answers[sent] is None:
                    request = requests[sent]
                    head = REQUEST.pack((first + sent) % NUMBERS, request.op, request.count, request.address)
                    self._line.write(encode(head + request.data))
                    self.repeated += sent < most_sent
                sent += 1
                most_sent = max(most_sent, sent)
                deadline = time.monotonic() + self._patience(requests[base:sent])
            frame = self._frame(deadline)
            # A line that is never silent and says nothing of use is as good as a silent one.
            if frame == b"" or time.monotonic() > deadline + self._timeout_s:
                silences += 1
                if silences == self._attempts:
                    raise self._silent(f"{self._attempts} times")
                sent, gone_back = base, None
                continue
            answer = self._parsed(frame)
            if answer is not None and answer.status == Status.CLOSED:
                raise self._reset()
            known = answer is not None and answer.status in (Status.OK, Status.REFUSED)
            # Numbers repeat; those of the half before `base` are answers to what was asked twice.
            ahead = (answer.seq - first - base) % NUMBERS if answer is not None and known else NUMBERS
            at = base + ahead
            if answer is not None and ahead < NUMBERS // 2 and at < most_sent and answer.op == requests[at].op:
                self._check(requests[at], answer)
                answers[at] = answer.data
                if answer.op in ANSWERED_AT_ONCE:
                    for before in range(base, at):
                        if requests[before].op in ANSWERED_AT_ONCE:
                            answers[before] = b""
                moved = base
                while base < len(requests) and answers[base] is not None:
                    base += 1
                sent = max(sent, base)
                if base > moved:
                    silences, gone_back = 0, None
                    deadline = time.monotonic() + self._patience(requests[base:sent])
                if at < base:
                    continue  # in order
            elif known:
                continue
            # Something is missing: from there on, once again; but once only for all that follows from one loss.
            if gone_back != base:
                gone_back, sent = base, base
        self._last = (first + len(requests) - 1) % NUMBERS
        return [answer or b"" for answer in answers]

    def _may_send(self, requests: Sequence[Request], base: int, sent: int) -> bool:
        """Whether another request may follow those under way."""
        if sent == base:
            return True
        under_way = requests[base : sent + 1]
        return (
            all(request.op in PIPELINED for request in under_way)
            and len(under_way) <= MOST_UNDER_WAY
            and sum(REQUEST.size + len(request.data) for request in under_way) <= self.room
        )

    def _patience(self, requests: Sequence[Request]) -> float:
        """Seconds to wait for an answer to the first of these."""
        amount = sum(len(request.data) + 2 * OVERHEAD for request in requests)
        amount += sum(request.count for request in requests if request.op == Op.READ)
        # Any byte may have to be escaped.
        return self._timeout_s + 2 * amount * BITS / self._baud

    def _frame(self, deadline: float) -> bytes | None:
        """The next frame's content; None if it is damaged, empty if none came in time."""
        while not self._waiting:
            if time.monotonic() > deadline:
                return b""
            self._waiting = self._deframer.push(self._line.read())
        return self._waiting.pop(0)

    def _parsed(self, frame: bytes | None) -> Answer | None:
        if frame is None or len(frame) < RESPONSE.size + 1:
            return None
        seq, op = RESPONSE.unpack_from(frame)
        return Answer(seq, op, frame[RESPONSE.size : -1], frame[-1])

    def _check(self, request: Request, answer: Answer) -> None:
        """Refuse an answer that is not of the request."""
        size = {Op.READ: request.count, Op.WRITE: 0}.get(request.op, VALUE.size)
        if answer.status == Status.REFUSED:
            raise DeviceError(
                f"the board refuses to {request.op.name.lower()} at {request.address:#x} (register {request.count:#x}, "
                "if it is one): there is no such memory, register or command; load a bitstream of this version"
            )
        if len(answer.data) != size:
            raise DeviceError(
                f"the board answers {request.op.name} with {len(answer.data)} bytes, not {size}: its gateware is of "
                "another version; load a bitstream of this one"
            )

    # -- the session itself

    def _open(self) -> int:
        """Begin, or find the way back in; the token that the board had."""
        self._line.forget()
        self._deframer.clear()
        self._waiting = []
        # Ends whatever frame the board is in.
        self._line.write(bytes([FLAG]))
        seq = (self._last + MOST_UNDER_WAY) % NUMBERS
        for _ in range(self._attempts):
            self._line.write(encode(REQUEST.pack(seq, Op.OPEN, 0, self._token)))
            deadline = time.monotonic() + self._patience([Request(Op.OPEN)])
            while (frame := self._frame(deadline)) != b"" and time.monotonic() < deadline + self._timeout_s:
                answer = self._parsed(frame)
                if answer is None or (answer.status == Status.DAMAGED):
                    continue
                if (answer.seq, answer.op, answer.status) == (seq, Op.OPEN, Status.OK):
                    self._check(Request(Op.OPEN), answer)
                    self._last = seq
                    return int(VALUE.unpack(answer.data)[0])
        raise self._silent(f"{self._attempts} times")

    def _resume(self) -> bool:
        """Get in step again; the board must be as it was left."""
        if self._open() != self._token:
            raise self._reset()
        return True

    def _silent(self, how_often: str) -> LineLost:
        return LineLost(
            f"no board answers on {self._line.name}, asked {how_often}: check that the cable is plugged in, that the "
            f"board has power, that Redline's bitstream is loaded, and that it is built for {self._baud} baud"
        )

    def _reset(self) -> LineLost:
        return LineLost(
            f"the board on {self._line.name} was reset, or opened by another program, and what was in its memory is "
            "lost; make the device anew"
        )
