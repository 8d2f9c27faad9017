"""The package is five rooms, and each imports only from those below it."""

import ast
import graphlib
import sys

import pytest

ROOMS = ["report", "runs", "paper", "training", "pruning"]  # from top to bottom
GROUND = {"checks", "progress", "store", "surroundings"}  # import nothing of lapnb
DOORS = {"__init__", "__main__"}  # import from every room


@pytest.fixture(scope="module")
def imports(checkout):
    """Of each module, as in lapnb.pruning.scores, what it imports, anywhere in it."""
    imported = {}
    for path in sorted(checkout.glob("lapnb/**/*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        imported[".".join(path.relative_to(checkout).with_suffix("").parts)] = names
    return imported


def room(module):
    return module.split(".")[1]


def test_every_module_is_in_a_room(imports):
    assert set(map(room, imports)) == {*ROOMS, *GROUND, *DOORS}


def test_a_room_imports_only_from_rooms_below_it(imports):
    for module, names in imports.items():
        own = room(module)
        if own not in DOORS:
            allowed = {*ROOMS[ROOMS.index(own) :], *GROUND} if own in ROOMS else set()
            rooms = {room(name) for name in names if name.startswith("lapnb.")}
            assert rooms <= allowed, f"{module} imports from {rooms - allowed}"


def test_no_modules_import_each_other_in_a_circle(imports):
    graph = {module: names & imports.keys() for module, names in imports.items()}
    assert [*graphlib.TopologicalSorter(graph).static_order()]


def test_pruning_imports_torch_alone(imports):
    """BackPACK, which computes the Hessians of OBD, is imported where it runs."""
    for module, names in imports.items():
        if room(module) == "pruning":
            packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
            assert packages <= {"lapnb", "torch", "backpack"}, module
