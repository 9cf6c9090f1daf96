"""The discrete-event kernel: cycles in order, arbiters last, and signals that let all go on that wait."""

from __future__ import annotations

from host.schedule.events import Clock, Process, Signal


def test_processes_go_on_in_the_order_of_their_cycles() -> None:
    clock, seen = Clock(), []

    def process(name: str, *cycles: int) -> Process:
        for cycle in cycles:
            yield cycle
            seen.append((clock.now, name))

    clock.resume(0, process("a", 3, 7))
    clock.resume(0, process("b", 2, 7, 7))
    clock.run()
    assert seen == [(2, "b"), (3, "a"), (7, "b"), (7, "a"), (7, "b")], "b asked for cycle 7 first"
    assert clock.now == 7


def test_the_end_of_a_cycle_sees_all_that_processes_do_in_it() -> None:
    clock, done, seen = Clock(), [], []

    def late() -> Process:
        yield 5
        yield 5  # once more in the same cycle
        done.append(clock.now)

    clock.at_end(5, lambda: seen.append(list(done)))
    clock.resume(0, late())
    clock.run()
    assert seen == [[5]]


def test_a_signal_lets_everyone_go_on_who_waits_and_nobody_who_comes_later() -> None:
    clock, seen = Clock(), []
    signal = Signal(clock)

    def waiter(name: str, since: int) -> Process:
        yield since
        yield signal
        seen.append((clock.now, name))

    def firing() -> Process:
        yield 4
        signal.fire()

    for name, since in (("a", 0), ("b", 3), ("late", 6)):
        clock.resume(0, waiter(name, since))
    clock.resume(0, firing())
    clock.run()
    assert seen == [(4, "a"), (4, "b")]
