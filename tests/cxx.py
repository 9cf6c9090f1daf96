"""What the C++ compiler says of a struct: its size, and where its fields lie."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sim.tools import find_compiler


def layouts(
    header: Path, structs: Mapping[str, Sequence[str]], folder: Path
) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """Size of each struct of a header, and (offset, size) of its fields in bytes.

    Parameters
    ----------
    header : Path
    structs : mapping of str to sequence of str
        Fields by struct.
    folder : Path
        Where the program that asks is built.
    """
    lines = [f'#include "{header}"', "#include <cstddef>", "#include <cstdio>", "int main() {", 'std::puts("{");']
    for at, (struct, fields) in enumerate(structs.items()):
        lines.append(f'std::printf("%s\\"{struct}\\": [%zu, {{", "{"," if at else ""}", sizeof({struct}));')
        for number, field in enumerate(fields):
            lines.append(
                f'std::printf("%s\\"{field}\\": [%zu, %zu]", "{"," if number else ""}", offsetof({struct}, {field}), '
                f"sizeof((({struct} *)0)->{field}));"
            )
        lines.append('std::puts("}]");')
    (folder / "ask.cpp").write_text("\n".join([*lines, 'std::puts("}");', "}"]))
    subprocess.run([find_compiler().path, "-std=c++17", "-w", "-o", folder / "ask", folder / "ask.cpp"], check=True)
    said = json.loads(subprocess.run([folder / "ask"], check=True, capture_output=True, text=True).stdout)
    return {
        struct: (size, {name: tuple(place) for name, place in fields.items()})
        for struct, (size, fields) in said.items()
    }
