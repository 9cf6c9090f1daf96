"""Mutation tests: which small changes of the code that everything rests on do its own tests not see?

`make mutants` runs it; docs/mutants.md says what its figures mean. Mutants are made by mutmut's operators (its own
runner needs a layout that Redline's packages and pytest's importlib mode do not have). Each file's tests run once as
they are; then a process is forked for each mutant, with everything imported that does not depend on the file.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = Path(__file__).with_suffix(".toml")
FIRST = ("hw", "sim", "host")
MESSAGES = ("warn", "debug", "info", "warning", "error", "print")
"""Calls whose arguments are words for people: not mutated, nor are `raise` statements."""
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes
    ----------
    path : str
    line : int
    before, after : str
        The line as it is and as the mutant has it, without indentation; several lines joined by a blank.
    code : str
        The whole file with the change.
    """

    path: str
    line: int
    before: str
    after: str
    code: str


def mutants_of(path: str, text: str) -> list[Mutant]:
    """Every mutant of a file that compiles and differs from it."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    positions = wrapper.resolve(PositionProvider)
    lines = text.splitlines()

    def skipped(node: Any) -> bool:
        """Whether a part of the file says nothing that a test should pin."""
        if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator | cst.Raise | cst.TypeAlias):
            return True
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString | cst.ConcatenatedString):
            return True
        if isinstance(node, cst.If) and "TYPE_CHECKING" in wrapper.module.code_for_node(node.test):
            return True
        if isinstance(node, cst.Assert):
            return True
        if isinstance(node, cst.Assign):  # a type by another name
            return wrapper.module.code_for_node(node.value).startswith(("Literal[", "npt.NDArray["))
        if isinstance(node, cst.Call):
            name = node.func.attr.value if isinstance(node.func, cst.Attribute) else getattr(node.func, "value", "")
            return name in (*MESSAGES, "isinstance", "cast", "TypeVar")
        return False

    found: dict[str, Mutant] = {}

    def visit(node: Any) -> None:
        if skipped(node):
            return
        for kind, operator in mutation_operators:
            if not isinstance(node, kind):
                continue
            for changed in operator(node):
                if not isinstance(changed, cst.CSTNode):
                    continue
                here = positions[node]
                span = slice(here.start.line - 1, here.end.line)
                head, tail = lines[span.start][: here.start.column], lines[span.stop - 1][here.end.column :]
                now = f"{head}{wrapper.module.code_for_node(changed)}{tail}"
                code = "\n".join([*lines[: span.start], now, *lines[span.stop :], ""])
                try:
                    compile(code, path, "exec")
                except SyntaxError:
                    continue
                if code == text or code in found:
                    continue
                joined = [" ".join(part.strip() for part in parts) for parts in (lines[span], now.splitlines())]
                found[code] = Mutant(path, here.start.line, *joined, code)
        for child in node.children:
            visit(child)

    visit(wrapper.module)
    return list(found.values())


def sample(mutants: list[Mutant], most: int | None, seed: int) -> list[Mutant]:
    """So many of them, drawn by their content: a change elsewhere in the file changes no draw."""
    if most is None or len(mutants) <= most:
        return mutants
    drawn = sorted(mutants, key=lambda m: hashlib.sha256(f"{seed} {m.before} {m.after}".encode()).digest())[:most]
    return sorted(drawn, key=lambda m: m.line)


def _module(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _dependents(path: str) -> set[str]:
    """Modules of ours that import a file, or something that does, and the file itself."""
    files = {_module(str(p)): p for top in FIRST for p in Path(top).rglob("*.py")}
    uses: dict[str, set[str]] = {}
    for name, file in files.items():
        uses[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                uses[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                uses[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found, more = set[str](), {_module(path)}
    while more:
        found |= more
        more = {name for name, used in uses.items() if used & more} - found
    return found


def forked(work: Callable[[], Any], limit: float | None = None) -> Any:
    """What a function returns in a process of its own; `TIMEOUT` if it takes longer, None if it dies."""
    sys.stdout.flush()
    with tempfile.NamedTemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            status = 1
            try:
                Path(answer.name).write_bytes(pickle.dumps(work()))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        with suppress(OSError):
            os.setpgid(child, child)
        end = None if limit is None else time.monotonic() + limit
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if end is not None and time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return TIMEOUT
            time.sleep(0.02)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # what its tests left running
        return pickle.loads(Path(answer.name).read_bytes()) if status == 0 else None


def run_tests(tests: list[str], *, quiet: bool = True, collect: bool = False) -> tuple[int, list[str]]:
    """pytest's exit status for test files, and what they imported; with `collect` they are read, not run."""
    import pytest

    if quiet:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    options += ["--collect-only"] if collect else []
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plug-ins are imported before the fork
    status = int(pytest.main([*options, *tests]))
    return status, [name for name in sys.modules if "." not in name or name.split(".")[0] in (*FIRST, "torch", "numpy")]


def _import_all(names: list[str]) -> None:
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)


def _judge(path: str, mutants: list[Mutant], tests: list[str], imported: list[str]) -> list[str]:
    """In a process of its own: what becomes of each mutant of a file; nothing if its tests fail without one."""
    dependents = _dependents(path)
    _import_all([name for name in imported if name.split(".")[0] in FIRST and name not in dependents])
    sys.dont_write_bytecode = True
    target, verdicts = Path(path), []
    original = target.read_text()
    started = time.monotonic()
    if forked(lambda: run_tests(tests)[0]) != 0:  # the control: as a mutant that changes nothing
        forked(lambda: run_tests(tests, quiet=False))
        return []
    limit = 4 * (time.monotonic() - started) + 20
    for cached in target.parent.glob(f"__pycache__/{target.stem}.*.pyc"):
        cached.unlink()
    for number, mutant in enumerate(mutants):
        target.write_text(mutant.code)
        answer = forked(lambda: run_tests(tests)[0], limit)
        verdict = SURVIVED if answer == 0 else TIMEOUT if answer == TIMEOUT else KILLED
        verdicts.append(verdict)
        if verdict == SURVIVED:
            print(f"  {path}:{mutant.line}: {mutant.before}\n    -> {mutant.after}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{path} {number + 1} of {len(mutants)}", end="", file=sys.stderr, flush=True)
    target.write_text(original)
    return verdicts


def copy_tree(to: Path) -> None:
    """The files that git knows or would take, so that no mutant ever lies in the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def tests_of(path: str, groups: dict[str, list[str]]) -> list[str]:
    """A file's own tests, as the settings have them: its own entry, or its folder's."""
    return groups.get(path) or groups[str(Path(path).parent)]


def files_of(groups: dict[str, list[str]]) -> Iterator[str]:
    """The files that the settings speak of."""
    for name in groups:
        if name.endswith(".py"):
            yield name
        else:
            known = set(groups)
            for path in sorted(Path(name).glob("*.py")):
                if path.name != "__init__.py" and str(path) not in known:
                    yield str(path)


def main() -> int:
    """Judge the mutants of the files that were asked for; 1 if fewer were killed than demanded."""
    parser = argparse.ArgumentParser(description="which small changes of the code its tests do not see")
    parser.add_argument("files", nargs="*", help="files or folders, instead of all that scripts/mutants.toml names")
    parser.add_argument(
        "--most", type=int, default=None, help="so many mutants of a file, drawn by --seed; all without it"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = tomllib.loads(SETTINGS.read_text())
    groups, demanded = settings["tests"], settings["demanded"]
    excused = {(e["file"], e["before"], e["after"]) for e in settings.get("equivalent", [])}

    scratch = Path(tempfile.mkdtemp(prefix="redline-mutants-"))
    try:
        copy_tree(scratch)
        os.chdir(scratch)
        sys.path[:] = [str(scratch), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "scripts"))]
        os.environ |= {"PYTHONPATH": str(scratch), "OMP_NUM_THREADS": "1"}
        files = [
            path
            for path in sorted(files_of(groups))
            if not options.files
            or any(path == f.rstrip("/") or path.startswith(f.rstrip("/") + "/") for f in options.files)
        ]
        if not files:
            parser.error(f"{SETTINGS.name} names none of them")
        all_killed = all_judged = 0
        broken = False
        for path in files:
            tests = tests_of(path, groups)
            made = mutants_of(path, Path(path).read_text())
            there = {(path, m.before, m.after) for m in made}
            stale = [e for e in excused if e[0] == path and e not in there]
            for _, before, after in stale:
                print(f"  {path}: listed as equivalent, but made no more: {before} -> {after}")
            drawn = sample([m for m in made if (path, m.before, m.after) not in excused], options.most, options.seed)
            started = time.monotonic()
            imported = forked(lambda t=tests: run_tests(t, collect=True)[1]) or []
            _import_all([name for name in imported if name.split(".")[0] not in (*FIRST, "tests", "redline")])
            verdicts = forked(lambda p=path, d=drawn, t=tests, i=imported: _judge(p, d, t, i))
            if not verdicts and drawn:
                print(f"{path}: its tests fail as it stands ({' '.join(tests)})", file=sys.stderr)
                broken = True
                continue
            killed, judged = len(verdicts) - verdicts.count(SURVIVED), len(verdicts)
            all_killed, all_judged = all_killed + killed, all_judged + judged
            excuses = sum(e[0] == path for e in excused)
            print(
                f"{path}: {killed} killed ({verdicts.count(TIMEOUT)} by time), {judged - killed} survived, of {judged} "
                f"drawn from {len(made) - excuses}; {excuses} equivalent ({time.monotonic() - started:.0f} s)",
                flush=True,
            )
        share = all_killed / max(1, all_judged)
        print(f"all: {all_killed} of {all_judged} killed, {share:.1%} (demanded: {demanded:.0%})")
        return int(broken or share < demanded)
    finally:
        os.chdir(ROOT)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
