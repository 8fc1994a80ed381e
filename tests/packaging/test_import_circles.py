"""How the modules of core and backends depend on each other: no import circles, small folders, unique names.

Imports are read from the source and counted wherever they stand, inside functions too. What stands under
``if TYPE_CHECKING`` is never run: circles that only such imports close are told apart.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {path.name: path for path in (ROOT / "core" / "isobit", *sorted(ROOT.glob("backends/*/isobit_*")))}

Edges = Mapping[str, set[str]]

#: Modules that a folder may hold beside its `__init__`, for a reader to take it in at once; who holds more, and why.
MOST_MODULES = 16
LARGER_FOLDERS = {
    "isobit/techniques": 17,  # one a technique, under the name that users write
}

#: Names that modules of one package share, and why.
SHARED_NAMES = {
    "isobit": {
        "kernels": "numba's loops stand beside the code that calls them",
        "procedure": "how a technique uses an engine: rounding and scaling of inputs each have one",
        "records": "as JSON: graphs and edits",
        "matching": "of patterns in a graph, and of two graphs",
        "report": "of a simulator, and of a transfer",
        "quantize": "the function, and the command that calls it",
        "export": "the verb, and the checks of it that every backend passes",
        "rescaling": "the engine, and what measures it on every backend",
    },
    "isobit_torch": {"recurrent": "taking layers apart, and writing them out"},
    "isobit_tensorflow": dict.fromkeys(
        ("recurrent", "training", "shapes", "native", "table", "normalization", "windows"),
        "the rule that reads a layer, and the kernel that runs it",
    ),
}


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by dotted name; `package.__main__` is one, a package is its `__init__`."""
    return {
        ".".join([package.name, *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


def imports(tree: ast.AST, of_types: bool) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of each import, inside functions too; those for types alone if `of_types`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in (*(node.body if of_types else ()), *node.orelse):
                yield from imports(ast.Module([part], []), of_types)
        else:
            yield from imports(node, of_types)


def import_graph(sources: Mapping[str, str], of_types: bool) -> dict[str, set[str]]:
    """Which of the modules each module imports, by its source."""
    edges: dict[str, set[str]] = {}
    for importer, source in sources.items():
        targets = set()
        for module, name in imports(ast.parse(source), of_types):
            submodule = f"{module}.{name}"
            targets.add(submodule if submodule in sources else module)
        edges[importer] = (targets & sources.keys()) - {importer}
    return edges


def circles(edges: Edges) -> list[list[str]]:
    """Strongly connected components of more than one node, each sorted (Tarjan, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = []
    for start in sorted(edges):
        work = [] if start in index else [(start, iter(sorted(edges[start])))]
        while work:
            node, targets = work[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
            for target in targets:
                if target not in index:
                    work.append((target, iter(sorted(edges[target]))))
                    break
                if target in stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    place = stack.index(node)
                    components.append(sorted(stack[place:]))
                    del stack[place:]
    return sorted(component for component in components if len(component) > 1)


def room(module: str) -> str:
    """The folder, or the file beside it, right under a package: ``isobit.cli``."""
    return ".".join(module.split(".")[:2])


def rooms(edges: Edges) -> dict[str, set[str]]:
    """The graph of the rooms; a package's own `__init__` re-exports and is none."""
    joined: dict[str, set[str]] = {room(module): set() for module in edges if "." in module}
    for module, targets in edges.items():
        if "." in module:
            joined[room(module)] |= {room(target) for target in targets if "." in target} - {room(module)}
    return joined


def described(components: Iterable[list[str]], edges: Edges) -> str:
    """Each circle on lines of its own: who imports whom."""
    lines = []
    for number, circle in enumerate(components, 1):
        lines.append(f"circle {number}, of {len(circle)}:")
        lines += [f"  {name} imports {', '.join(sorted(edges[name] & set(circle)))}" for name in circle]
    return "\n".join(lines)


def graph_of(package: str, of_types: bool = False) -> dict[str, set[str]]:
    return import_graph({name: path.read_text("utf-8") for name, path in modules(PACKAGES[package]).items()}, of_types)


def check(edges: Edges) -> None:
    components = circles(edges)
    assert not components, f"{len(components)} import circle(s)\n{described(components, edges)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other(package: str) -> None:
    check(graph_of(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_rooms_import_each_other(package: str) -> None:
    check(rooms(graph_of(package)))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_is_closed_by_an_import_for_types(package: str) -> None:
    """A reader of a module must understand the types that it imports for annotations alone, so they count too."""
    edges = graph_of(package, of_types=True)
    loaded = circles(graph_of(package))
    components = [circle for circle in circles(edges) if circle not in loaded]
    assert not components, f"{len(components)} circle(s) with imports for types\n{described(components, edges)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_holds_more_modules_than_a_reader_takes_in(package: str) -> None:
    base = PACKAGES[package].parent
    modules = [path for path in PACKAGES[package].rglob("*.py") if path.stem not in ("__init__", "__main__")]
    sizes = Counter(path.parent.relative_to(base).as_posix() for path in modules)
    large = {name: size for name, size in sizes.items() if size > LARGER_FOLDERS.get(name, MOST_MODULES)}
    assert not large


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_of_a_package_share_a_name(package: str) -> None:
    names: dict[str, list[str]] = {}
    for module, path in modules(PACKAGES[package]).items():
        if path.stem not in ("__init__", "__main__"):
            names.setdefault(path.stem, []).append(module)
    allowed = SHARED_NAMES.get(package, {})
    shared = {stem: places for stem, places in names.items() if len(places) > 1 and stem not in allowed}
    assert not shared


def test_the_reading_finds_circles_wherever_an_import_stands() -> None:
    sources = {
        "p": "",
        "p.a": "def f():\n    from p import b\n",
        "p.b": "class C:\n    import p.c\n",
        "p.c": "if TYPE_CHECKING:\n    from p.d import D\nelse:\n    from p.a import A\n",
        "p.d": "import p.c\nimport os\n",
        "p.room.e": "from p.a import A\n",
        "p.room.f": "",
        "p.g": "from p.room.f import F\n",
    }
    edges = import_graph(sources, of_types=False)
    assert circles(edges) == [["p.a", "p.b", "p.c"]]
    assert circles(import_graph(sources, of_types=True)) == [["p.a", "p.b", "p.c", "p.d"]]
    assert "p.a imports p.b" in described(circles(edges), edges)
    sources["p.a"] += "import p.g\n"
    assert circles(rooms(import_graph(sources, of_types=False))) == [["p.a", "p.b", "p.c", "p.g", "p.room"]]
    assert circles(import_graph(sources, of_types=False)) == [["p.a", "p.b", "p.c"]]
