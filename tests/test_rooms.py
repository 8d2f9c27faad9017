"""The package is five rooms, and each imports only from those below it."""

import ast
import graphlib
import sys

import pytest

ROOMS = ["report", "runs", "paper", "training", "pruning"]  # from top to bottom
GROUND = {"checks", "progress", "store", "surroundings"}  # import nothing of lapnb
DOORS = {"__init__", "__main__"}  # import from every room


@pytest.fixture(scope="module")
def files(checkout):
    """Module's name → its file, as in pruning.scores."""
    package = checkout / "lapnb"
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path):
    """What a module imports, anywhere in it, by full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path, files):
    """The modules of lapnb that one of them imports."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "lapnb":
            known = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            yield next((module for module in known if module in files), "__init__")


def room(module):
    return module.partition(".")[0]


def test_every_module_is_in_a_room(files):
    assert {room(module) for module in files} == {*ROOMS, *GROUND, *DOORS}


def test_a_room_imports_only_from_rooms_below_it(files):
    for module, path in files.items():
        if module not in DOORS:
            own = room(module)
            allowed = {*ROOMS[ROOMS.index(own) :], *GROUND} if own in ROOMS else set()
            found = {room(imported) for imported in own_imports(path, files)}
            assert found <= allowed, f"{module} imports from {found - allowed}"


def test_no_modules_import_each_other_in_a_circle(files):
    graph = {module: {*own_imports(path, files)} for module, path in files.items()}
    assert [*graphlib.TopologicalSorter(graph).static_order()]


def test_pruning_imports_torch_alone(files):
    """BackPACK, which computes the Hessians of OBD, is imported where it runs."""
    for module, path in files.items():
        if room(module) == "pruning":
            found = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names
            assert found <= {"lapnb", "torch", "backpack"}, module
