"""The house test: rooms, doors and sizes, read from the source itself.

The table of imports is in docs/design.md, so that whoever changes what stands on what
has to say so there.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
DESIGN = ROOT / "docs" / "design.md"
FUNCTION_LINES_MAX = 70
LINE_LENGTH_MAX = 88

#: The front, and what stands on both halves on purpose: the BaseManager face is client
#: and server in one object; the commands start one and ask the other.
FRONT = "state_server"
BOTH_HALVES = {FRONT, "manager", "__main__"}
CLIENT_HALF = {"client", "integrations", "web"}
SERVER_HALF = {
    "service",
    "listening",
    "engine",
    "host",
    "keeping",
    "store",
    "dumps",
    "operating",
    "objects",
}
#: What both halves may stand on.
GROUND = {
    "addresses",
    "bodies",
    "busy_poll",
    "clock",
    "codec",
    "data_folder",
    "errors",
    "failures",
    "handshake",
    "limits",
    "log_lines",
    "messages",
    "replayable",
    "session_answers",
    "settings",
    "sharing",
    "tcp",
    "version",
    "wire",
}
FORBIDDEN_NAMES = {"utils", "util", "utilities", "helpers", "common", "misc", "lib"}

#: Where the halves touch: the demonstration has an object of a hosted class in its own
#: process, to show what becomes of it there.
CROSSINGS = {
    ("web.demo", "objects.demonstration"),
    ("web.variants.global_with_lock", "objects.demonstration"),
    ("web.variants.plain_global", "objects.demonstration"),
    ("web.variants.stock_manager", "objects.demonstration"),
}

#: Each outside thing, and the rooms it may enter by.
DOORS = {
    "pickle": {"codec", "keeping.image"},
    "copyreg": {"codec", "keeping.image"},
    "marshal": set(),
    "shelve": set(),
    "numpy": {"codec.dtypes"},
    "pandas": {"codec.dataframes"},
    "sqlite3": {"store", "store.database", "store.reading"},
    "signal": {
        # The commands: what Ctrl-C does while their modules load.
        "start_manager",
        "start_web",
        "web.__main__",
        # What is done in good order.
        "service",
        "web.children",
        "web.supervisor",
        "web.terminal",
        "web.worker",
    },
    "flask": {
        "integrations.flask",
        "integrations.flask_caching",
        "integrations.flask_session",
        "integrations.sessions",
        "web.app",
        "web.demo",
        "web.variants.session_cookie",
    },
    "flask_caching": {"integrations.flask_caching"},
    "cachelib": {"integrations.region_cache", "integrations.serializers"},
    "limits": {"integrations.limits"},
    "waitress": {"web.server"},
    "multiprocessing": {
        "client",
        "manager",
        "web.stock_process",
        "web.variants.stock_manager",
    },
    "subprocess": {"web.children"},
    "socket": {
        "client.stream",
        "engine",
        "engine.connection",
        "listening",
        "service",
        "tcp",
        "web.server",
        "web.stock_process",
        "web.supervisor",
        "web.worker",
    },
    "select": {"client.stream", "engine.poller", "web.supervisor"},
    "selectors": {"engine.poller"},
    "asyncio": set(),
    "ctypes": set(),
}

#: Where ``os.environ`` is mentioned: to pass it on to settings or to children.
ENVIRONMENT = {
    "__main__",
    "client",
    "service",
    "web.__main__",
    "web.stock_process",
    "web.supervisor",
    "web.terminal",
    "web.worker",
}

#: Variables that are not ours: the interpreter's, and make's.
FOREIGN_VARIABLES = {"PYTHONHASHSEED", "MAKELEVEL"}


class Module(NamedTuple):
    """One file of the product: its room, where it is, what stands in it."""

    room: str
    path: Path
    text: str
    tree: ast.Module


def room_of(path: Path) -> str:
    """Return the room that a file is: its dotted name without the package's own."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if parts[0] == "state_server" and len(parts) > 1:
        parts.pop(0)
    return ".".join(parts)


@cache
def modules() -> dict[str, Module]:
    """Return every module of the product, by room."""
    paths = [
        *ROOT.glob("state_server/**/*.py"),
        *ROOT.glob("web/**/*.py"),
        *ROOT.glob("start_*.py"),
    ]
    found = {}
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8")
        room = room_of(path)
        found[room] = Module(room, path, text, ast.parse(text))
    return found


def dotted(room: str) -> str:
    """Return the name that a room is imported by."""
    if room.split(".")[0] in ("state_server", "web") or room.startswith("start_"):
        return room
    return f"state_server.{room}"


@cache
def imported_names(module: Module) -> frozenset[str]:
    """Return the dotted names a module imports: at its head, inside functions, all.

    Of ``from package import name`` both ``package`` and ``package.name`` are given.
    """
    inside = dotted(module.room).split(".")
    if module.path.name != "__init__.py":
        inside.pop()
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) + 1 - node.level] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def rooms_imported(module: Module) -> set[str]:
    """Return the rooms that a module stands on."""
    rooms = {dotted(room): room for room in modules()}
    found = set()
    for name in imported_names(module):
        parts = name.split(".")
        while parts and ".".join(parts) not in rooms:
            parts.pop()
        if parts:
            found.add(rooms[".".join(parts)])
    return found - {module.room}


@cache
def graph() -> dict[str, set[str]]:
    """Return what each room stands on."""
    return {room: rooms_imported(module) for room, module in modules().items()}


def half_of(room: str) -> str:
    """Return which half of the house a room is in: client, server, ground or both."""
    first = room.split(".")[0]
    if room in BOTH_HALVES or room.startswith("start_"):
        return "both"
    if first in CLIENT_HALF:
        return "client"
    if first in SERVER_HALF:
        return "server"
    return "ground" if first in GROUND else "nowhere"


# Imports -----------------------------------------------------------------------------


def table() -> dict[str, set[str]]:
    """Return the table of imports in docs/design.md."""
    section = DESIGN.read_text(encoding="utf-8").split("\n## Imports\n")[1]
    fenced = section.split("```")[1]
    rows = {}
    for line in fenced.splitlines():
        if "->" in line:
            room, _, rest = line.partition("->")
            rows[room.strip()] = {name.strip() for name in rest.split(",")} - {""}
    return rows


def as_row(room: str, stands_on: set[str]) -> str:
    """Return a row of the table."""
    return f"{room} -> {', '.join(sorted(stands_on))}".rstrip()


def test_imports_are_those_of_the_table() -> None:
    """What each room stands on is written down in docs/design.md, no more, no less."""
    drawn, written = graph(), table()
    differing = [
        as_row(room, drawn[room])
        for room in sorted(drawn)
        if written.get(room) != drawn[room]
    ]
    gone = sorted(set(written) - set(drawn))

    assert not differing, "rows for docs/design.md:\n" + "\n".join(differing)
    assert not gone, f"rooms in docs/design.md that do not exist: {gone}"


def test_rows_of_the_table_are_sorted() -> None:
    """A row is found where the alphabet says."""
    section = DESIGN.read_text(encoding="utf-8").split("\n## Imports\n")[1]
    rooms = [
        line.partition("->")[0].strip()
        for line in section.split("```")[1].splitlines()
        if "->" in line
    ]

    assert rooms == sorted(rooms)


def test_every_room_is_in_the_table_of_rooms() -> None:
    """docs/design.md says what is in each room; classes and web have a row together."""
    section = DESIGN.read_text(encoding="utf-8").split("\n## The house\n")[1]
    rows = [
        line.split("|")[1]
        for line in section.split("\n## ")[0].splitlines()
        if line.startswith(("| `", "| - `"))
    ]
    named = set(re.findall(r"`(\w+)/?`", " ".join(rows)))
    of_their_own = [
        room
        for room in modules()
        if room.split(".")[0] not in ("objects", "web", "start_manager", "start_web")
        and room != FRONT
    ]
    missing = [room for room in of_their_own if room.split(".")[-1] not in named]

    assert missing == []


def test_who_follows_a_call_by_docs_design_finds_each_function() -> None:
    """The way of a call names rooms and functions that are there."""
    section = DESIGN.read_text(encoding="utf-8").split("\n## The way of a call\n")[1]
    steps = [line.split() for line in section.split("```")[1].splitlines() if line]
    there = {
        f"{room} {name}"
        for room, module in modules().items()
        for name, _ in definitions(module.tree)
    }
    missing = [
        f"{room} {name}"
        for room, *names in steps
        for name in names
        if f"{room} {name}" not in there
    ]

    assert len(steps) > 10
    assert missing == []


def test_no_room_stands_on_itself() -> None:
    """There is no cycle of imports, not even one that hides inside a function."""
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")
    assert set(order) >= set(modules())


def test_every_room_is_in_one_half_of_the_house() -> None:
    """A new room has to say where it belongs, in this file."""
    assert [room for room in modules() if half_of(room) == "nowhere"] == []


def test_halves_meet_on_the_ground_only() -> None:
    """Neither half imports the other; the ground imports neither.

    Who may import both (the front, the BaseManager face, the commands) is imported by
    no room of the client half but through the front.
    """
    allowed = {
        "client": {"client", "ground"},
        "server": {"server", "ground"},
        "ground": {"ground"},
        "both": {"both", "client", "server", "ground"},
    }
    wrong = [
        f"{room} ({half_of(room)}) imports {other} ({half_of(other)})"
        for room, stands_on in graph().items()
        for other in sorted(stands_on)
        if half_of(other) not in allowed.get(half_of(room), {"ground"})
        and not (half_of(room) == "client" and other == FRONT)
        and (room, other) not in CROSSINGS
    ]

    assert wrong == []


def test_clients_and_workers_load_no_room_of_the_server() -> None:
    """The front loads the manager's half when its name is used, and not before."""
    code = (
        "import sys, state_server, state_server.integrations.flask\n"
        "print(*(m for m in sys.modules if m.startswith('state_server.')))\n"
        "from state_server import *\n"
        "print(StateManager.__name__, 'state_server.engine' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded, after = done.stdout.splitlines()
    rooms = {name.removeprefix("state_server.") for name in loaded.split()}
    assert "client" in rooms
    assert {room for room in rooms if half_of(room) in ("server", "both")} == set()
    assert after == "StateManager True"


@pytest.mark.parametrize("package", ["client", "codec", "engine", "host", "store"])
def test_packages_are_entered_by_their_doors(package: str) -> None:
    """What lies in a package is reached by the package, which says what it does."""
    inside = f"{package}."
    wrong = [
        f"{room} imports {other}"
        for room, stands_on in graph().items()
        for other in sorted(stands_on)
        if other.startswith(inside) and room.split(".")[0] != package
    ]

    assert wrong == []


def test_core_of_the_client_does_not_use_the_front() -> None:
    """Only neighbours of the package use it as its users do."""
    users = {room for room, stands_on in graph().items() if FRONT in stands_on}

    assert all(room.split(".")[0] in ("web", "integrations") for room in users), users


def test_ground_floor_knows_neither_network_nor_files() -> None:
    """Codec, wire, messages, host and crew do no I/O, so all of it is tested there."""
    dry = {
        "codec",
        "wire",
        "handshake",
        "addresses",
        "messages",
        "errors",
        "failures",
        "limits",
        "host",
        "keeping.commits",
        "keeping.image",
        "engine.crew",
        "engine.conversation",
        "engine.stock",
        "sharing",
    }
    wet = {"socket", "select", "selectors", "sqlite3", "subprocess", "tempfile"}
    found = {
        room: wet & {name.split(".")[0] for name in imported_names(modules()[room])}
        for room in dry
    }

    assert {room: names for room, names in found.items() if names} == {}
    for room in dry:
        opens = [
            node
            for node in ast.walk(modules()[room].tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ]
        assert opens == [], room


@pytest.mark.parametrize("thing", sorted(DOORS))
def test_outside_things_enter_by_their_doors(thing: str) -> None:
    """What is not ours is imported where it is said to be, and nowhere else."""
    users = {
        room
        for room, module in modules().items()
        if thing in {name.split(".")[0] for name in imported_names(module)}
    }
    doors = DOORS[thing]

    assert users <= doors, f"{thing} enters by {sorted(users - doors)}"
    unused = {door for door in doors - users if door in modules()}
    assert not unused, f"doors that nobody uses: {sorted(unused)}"


def test_environment_is_read_by_settings_alone() -> None:
    """Others mention ``os.environ`` only to pass it on; they are all listed."""
    words = {"environ", "environb", "getenv", "getenvb", "putenv"}
    users = set()
    for room, module in modules().items():
        for node in ast.walk(module.tree):
            name = getattr(node, "attr", None) or getattr(node, "name", None)
            owner = getattr(node, "value", None)
            is_os = isinstance(owner, ast.Name) and owner.id == "os"
            if name in words and (is_os or isinstance(node, ast.alias)):
                users.add(room)
    assert users == {room for room in ENVIRONMENT if room in modules()}


def test_environment_is_passed_on_and_not_looked_into() -> None:
    """Outside settings nobody takes a variable of ours out of ``os.environ``."""
    read = []
    for room, module in modules().items():
        for node in ast.walk(module.tree):
            asked: list[ast.expr] = []
            if isinstance(node, ast.Subscript) and _is_environment(node.value):
                asked = [node.slice]
            elif isinstance(node, ast.Compare) and any(
                map(_is_environment, node.comparators)
            ):
                asked = [node.left]
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and _is_environment(node.func.value)
            ):
                asked = node.args[:1] or [node.func]
            read += [
                f"{room}:{name.lineno}"
                for name in asked
                if not isinstance(name, ast.Constant)
                or name.value not in FOREIGN_VARIABLES
            ]

    assert read == []


def _is_environment(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("environ", "environb")


def test_there_is_no_lumber_room() -> None:
    """No module is called utils, helpers or common."""
    names = {part for room in modules() for part in room.split(".")}

    assert not names & FORBIDDEN_NAMES


# Docstrings and sizes ----------------------------------------------------------------


def definitions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Return each class and function with its dotted name, not those in functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield f"{outer}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{outer}{node.name}.")
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from definitions(node, outer)


def is_public(name: str) -> bool:
    """Tell whether a dotted name is for everybody."""
    return not any(part.startswith("_") for part in name.split("."))


def is_overload(node: ast.AST) -> bool:
    """Tell whether a function is only one of the spellings of another."""
    return any(
        "overload" in ast.dump(decorator)
        for decorator in getattr(node, "decorator_list", [])
    )


def test_every_module_and_public_name_says_what_it_is() -> None:
    """Modules, public classes, functions and methods have a docstring."""
    missing = [
        room for room, module in modules().items() if not ast.get_docstring(module.tree)
    ]
    for room, module in modules().items():
        missing += [
            f"{room}.{name}"
            for name, node in definitions(module.tree)
            if is_public(name) and not is_overload(node) and not ast.get_docstring(node)  # type: ignore[arg-type]
        ]

    assert missing == []


def test_docstrings_are_sentences() -> None:
    """The first paragraph of a docstring ends in a full stop, or opens an example."""
    wrong = [
        f"{room}.{name}"
        for room, module in modules().items()
        for name, node in definitions(module.tree)
        if (text := ast.get_docstring(node))  # type: ignore[arg-type]
        and not re.search(r"[.:]$", text.split("\n\n")[0])
    ]

    assert wrong == []


@cache
def files_of_tests() -> dict[str, ast.Module]:
    """Return every module of the tests, by its path among them."""
    folder = ROOT / "tests"
    return {
        str(path.relative_to(folder)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("test_*.py"))
    }


def test_every_test_says_what_it_proves() -> None:
    """Each test, and each file of tests, has a docstring: the fact."""
    missing = [
        name for name, tree in files_of_tests().items() if not ast.get_docstring(tree)
    ]
    for file_name, tree in files_of_tests().items():
        missing += [
            f"{file_name}: {name}"
            for name, node in definitions(tree)
            if name.split(".")[-1].startswith("test")
            and isinstance(node, ast.FunctionDef)
            and not ast.get_docstring(node)
        ]

    assert missing == []


def test_no_two_tests_of_a_file_have_one_name() -> None:
    """A second test of a name would silently take the place of the first."""
    twice = []
    for file_name, tree in files_of_tests().items():
        names = [name for name, _ in definitions(tree) if "test_" in name]
        twice += [
            f"{file_name}: {name}" for name in set(names) if names.count(name) > 1
        ]

    assert twice == []


def test_functions_can_be_seen_at_once() -> None:
    """No function has more than 70 lines."""
    long = [
        f"{room}.{node.name}: {node.end_lineno - node.lineno + 1}"
        for room, module in modules().items()
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and _code_lines(node) > FUNCTION_LINES_MAX
    ]

    assert long == []


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_lines_fit() -> None:
    """No line has more than 88 characters, words to the tools at its end aside."""
    long = [
        f"{room}:{number}"
        for room, module in modules().items()
        for number, line in enumerate(module.text.splitlines(), 1)
        if len(re.sub(r"  # (type: ignore|noqa)\b.*", "", line)) > LINE_LENGTH_MAX
    ]

    assert long == []


def test_no_control_characters_and_no_tabs() -> None:
    """Source is plain text: what one sees is what is there."""
    odd = [
        room
        for room, module in modules().items()
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e]", module.text)
    ]

    assert odd == []


# The house test itself ---------------------------------------------------------------


def module_of(room: str, text: str, *, package: bool = False) -> Module:
    """Return a module that stands nowhere."""
    base = ROOT / "state_server" / room.replace(".", "/")
    path = base / "__init__.py" if package else base.with_suffix(".py")
    return Module(room, path, text, ast.parse(text))


@pytest.mark.parametrize(
    ("room", "text", "expected"),
    [
        ("client", "from . import codec, wire", {"codec", "wire"}),
        ("client", "from .errors import Stale", {"errors"}),
        ("client", "import state_server.codec", {"codec"}),
        ("client", "from state_server.codec import allow", {"codec"}),
        ("client", "import state_server", {FRONT}),
        ("client", "from state_server import share", {FRONT}),
        ("client", "def f():\n    from .host import Host", {"host"}),
        ("client", "if TYPE_CHECKING:\n    from .host import Host", {"host"}),
        ("objects.some_obj", "from ..sharing import share", {"sharing"}),
        ("objects.some_obj", "from .. import sharing", {"sharing"}),
        ("integrations.flask", "from flask import Flask", set()),
        ("web.pool", "from .children import Child", {"web.children"}),
        ("client", "import os, socket.x", set()),
    ],
)
def test_imports_are_seen_in_every_spelling(
    room: str, text: str, expected: set[str]
) -> None:
    """However and wherever an import is written, it is in the graph."""
    assert rooms_imported(module_of(room, text)) == expected


def test_packages_import_from_themselves() -> None:
    """A dot in an ``__init__`` file means the package itself."""
    module = module_of("objects", "from .some_obj import SomeObj", package=True)
    assert rooms_imported(module) == {"objects.some_obj"}


if __name__ == "__main__":
    # The rows as they are now, for docs/design.md: python -m tests.test_house
    print("\n".join(as_row(room, graph()[room]) for room in sorted(graph())))
