"""Memory whose tensors are rendered late is indistinguishable from plain bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.device import Bytes
from host.devices.emulator.memory import Content, Images, Memory
from host.schedule.memory import Region
from hw import layout

SIZE = 64


class Constant(Content):
    """Bytes of one value, which counts how often it is rendered."""

    def __init__(self, value: int, nbytes: int) -> None:
        self.value, self.nbytes, self.rendered = value, nbytes, 0

    def render(self) -> Bytes:
        self.rendered += 1
        return np.full(self.nbytes, self.value, np.uint8)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["write", "put", "read"]), st.integers(0, SIZE - 1), st.integers(1, 24)), max_size=40
)


@settings(deadline=None)
@given(OPERATIONS)
def test_any_order_of_writes_contents_and_reads_gives_plain_memory(operations: list[tuple[str, int, int]]) -> None:
    memory, plain = Memory(SIZE), np.zeros(SIZE, np.uint8)
    for number, (what, address, nbytes) in enumerate(operations):
        nbytes = min(nbytes, SIZE - address)
        part = slice(address, address + nbytes)
        if what == "write":
            memory.write(address, np.full(nbytes, number + 1, np.uint8))
            plain[part] = number + 1
        elif what == "put":
            memory.put(Region(address, nbytes, (nbytes,)), Constant(number + 1, nbytes))
            plain[part] = number + 1
        else:
            assert np.array_equal(memory.view(address, nbytes), plain[part])
    assert np.array_equal(memory.view(0, SIZE), plain)


def test_what_nobody_reads_is_not_rendered() -> None:
    memory, region = Memory(SIZE), Region(8, 16, (16,))
    first, second = Constant(1, 16), Constant(2, 16)
    memory.put(region, first)
    memory.view(0, 8)
    memory.put(region, second)
    memory.view(8, 1)
    memory.view(9, 3)
    assert (first.rendered, second.rendered) == (0, 1)
    assert memory.content(region) is second


def test_a_content_is_forgotten_once_a_byte_of_it_is_overwritten() -> None:
    memory, region = Memory(SIZE), Region(8, 16, (16,))
    memory.put(region, Constant(1, 16))
    memory.write(23, np.array([9], np.uint8))
    assert memory.content(region) is None
    assert memory.view(8, 16).tolist() == [1] * 15 + [9]


def test_images_are_rendered_in_the_accelerators_layout() -> None:
    x = np.random.default_rng(0).integers(-128, 128, (2, 5, 2, 2)).astype(np.int8)
    assert np.array_equal(Images(x, 4).render().view(np.int8), layout.reorder_features(x, 4).reshape(-1))
