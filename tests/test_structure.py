"""Rules for imports between modules and for the length of functions, checked in the source code."""

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Layers from bottom to top: a module may import from its own layer and from lower ones.
FLOORS = [
    ["kernels"],
    ["errors", "files", "registry", "process", "provenance", "quote", "text", "weights"],
    ["data"],
    ["conf"],
    ["stage", "schedule"],
    ["attention", "context_parallel"],
    ["model"],
    ["distributed"],
    ["compute"],
    ["checkpoint"],
    ["health", "profiler", "progress", "runs", "report", "interop", "slurm"],
    ["compare", "pages"],
    ["step", "evaluation", "loader", "stage_data", "build", "opened", "samples", "train", "session"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

TRAIN_LINES = 290
LONGEST = 60  # lines of a function
LONGEST_KERNEL = 100  # lines of a Triton kernel, which cannot always be split


@cache
def trees() -> dict[str, ast.Module]:
    """Module name -> its syntax tree. lhtrain/{conf,data,kernels} are links."""
    found = {}
    for folder, _, files in os.walk(ROOT / "lhtrain", followlinks=True):
        for name in files:
            if name.endswith(".py"):
                path = Path(folder, name)
                parts = path.relative_to(ROOT).with_suffix("").parts
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found[module] = ast.parse(path.read_text(), str(path))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield everything that a module imports, including imports in functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph() -> dict[str, set[str]]:
    """Return module -> the modules of lhtrain that it imports.

    `from package import name` counts as the module `package.name` if there is one, else as the package.
    """
    modules = trees()
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for module, tree in modules.items():
        for name in imported(tree):
            owner = name if name in modules else name.rpartition(".")[0]
            if owner in modules and owner != module:
                edges[module].add(owner)
    return edges


def room(module: str) -> str:
    """Return the top-level part of a module's name: `lhtrain.conf.rules.validate` -> conf."""
    return module.removeprefix("lhtrain.").partition(".")[0] if module != "lhtrain" else "__init__"


def rooms() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for module, others in graph().items():
        edges.setdefault(room(module), set()).update(room(other) for other in others)
    return {
        name: {other for other in others if other not in (name, "__init__")}
        for name, others in edges.items()
        if name != "__init__"
    }


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of two or more nodes that all reach each other."""
    reach = {}
    for start in edges:
        seen, to_visit = set(), [start]
        while to_visit:
            for other in edges[to_visit.pop()] - seen:
                seen.add(other)
                to_visit.append(other)
        reach[start] = seen
    found: list[set[str]] = []
    for node in edges:
        circle = {other for other in reach[node] if node in reach[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_the_search_for_circles_finds_them():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert circles(edges) == [{"b", "c"}, {"e", "f"}]


def test_imports_in_functions_and_for_type_checkers_count():
    text = "import a\ndef f():\n    from b.c import d\nif TYPE_CHECKING:\n    from e import f\n"
    assert set(imported(ast.parse(text))) == {"a", "b.c.d", "e.f"}


def test_every_package_has_a_layer():
    assert {room(module) for module in trees()} - {"__init__"} <= FLOOR.keys()


def test_nothing_imports_from_a_higher_layer():
    upwards = {
        f"{name} -> {other}"
        for name, others in rooms().items()
        for other in others
        if FLOOR[other] > FLOOR[name]
    }
    assert upwards == set()


@pytest.mark.parametrize("of", [graph, rooms])
def test_no_imports_form_a_circle(of):
    assert circles(of()) == []


def test_kernels_import_nothing_of_lhtrain():
    assert rooms()["kernels"] == set()


def test_only_the_entry_imports_the_command_line():
    assert {name for name, others in rooms().items() if "cli" in others} <= {"__main__"}


@pytest.mark.parametrize("name", ["model", "attention", "kernels"])
def test_the_model_knows_nothing_of_ranks(name):
    for module, tree in trees().items():
        if room(module) == name:
            assert not [x for x in imported(tree) if x.startswith("torch.distributed")], module
            reached = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            assert "torch.distributed" not in {ast.unparse(node) for node in reached}, module


def test_the_trainer_is_short():
    assert len((ROOT / "lhtrain/train.py").read_text().splitlines()) <= TRAIN_LINES


def test_functions_fit_on_a_screen():
    too_long = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                jitted = any("triton.jit" in ast.unparse(mark) for mark in node.decorator_list)
                lines = node.end_lineno - node.lineno + 1
                if lines > (LONGEST_KERNEL if jitted else LONGEST):
                    too_long[f"{module}.{node.name}"] = lines
    assert too_long == {}
