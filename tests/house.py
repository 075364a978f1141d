"""The law of the packages: which module may import which, and how long a file and a function may be.

Every law is a function of a tree of sources (path -> text) that returns what breaks it, one line each, so that a small
made-up tree can show that it speaks.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FLOORS = ("diagnostics", "shadowlab", "cli")  # each imports itself and those before it
EXPORTED = "shadowlab.tasks.pipelines."
"""Modules that run where there is no shadowlab."""
# Each child is a room; exports nothing.
HALLS = ("shadowlab", "shadowlab.stages", "shadowlab.views", "shadowlab.bench", "diagnostics.integrations")
MOST_ROOMS = {"diagnostics": 16, "shadowlab.stages": 8}
MOST_LINES_OF_FILE = 350
MOST_LINES_OF_FUNCTION = 60
OPTIONAL = {"mitsuba", "drjit", "trimesh", "bitsandbytes", "wandb", "mlflow"}
LIGHT = ("shadowlab.distributed", "shadowlab.settings", "shadowlab.runs", "shadowlab.console", "shadowlab.views.")
UNPICKLERS = "diagnostics.incidents"  # evidence from any loop; read with weights_only
WRITES_TENSORBOARD = "diagnostics.board.tensorboard"
OWN_LIBRARIES = {  # of the modules that are made for one
    "diagnostics.files.quick_json": ("orjson",),
    "diagnostics.integrations.lightning": ("lightning", "pytorch_lightning"),
    "diagnostics.integrations.transformers": ("transformers", "accelerate"),
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    module: str
    """The module that imports."""
    place: str
    """`path:line` for messages."""
    target: str
    """The module it comes from."""
    name: str | None
    """The name taken from it; None for the module itself."""
    deferred: bool
    """Inside a function or for type checkers alone: not run when the module is imported."""


@dataclass(frozen=True)
class House:
    """A tree of sources: path with forward slashes -> text."""

    sources: Mapping[str, str]

    @classmethod
    def read(cls, root: Path, *folders: str) -> "House":
        files = [file for folder in folders for file in sorted((root / folder).rglob("*.py"))]
        return cls({file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files})

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """By path."""
        return {path: ast.parse(text) for path, text in self.sources.items()}

    @cached_property
    def modules(self) -> dict[str, str]:
        """Dotted name -> path."""
        return {_dotted(path): path for path in self.sources}

    @cached_property
    def imports(self) -> list[Import]:
        return [one for module, path in self.modules.items() for one in self._imports_of(module, path)]

    def is_package(self, module: str) -> bool:
        return self.modules[module].endswith("__init__.py")

    def exported(self, module: str) -> set[str] | None:
        """`__all__` of a module, None where it has none."""
        for node in self.trees[self.modules[module]].body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return set(ast.literal_eval(node.value))
        return None

    def _imports_of(self, module: str, path: str) -> Iterator[Import]:
        """Also what is reached through a module that was imported (`data.index.Index`), and by name (`importlib`)."""
        bound = self._bound(path)

        def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
            checked_only = _of_type_checkers(node)
            for child in ast.iter_child_nodes(node):
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                inner = deferred or child in checked_only or function
                place = f"{path}:{getattr(child, 'lineno', 0)}"
                for target, name in self._taken(child, bound):
                    yield Import(module, place, target, name, inner)
                yield from walk(child, inner)

        yield from walk(self.trees[path], False)

    def _taken(self, node: ast.AST, bound: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
        """(module, name in it) of one node. bound: local name -> module."""
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield (whole, None) if whole in self.modules else (source, alias.name)
        elif isinstance(node, ast.Attribute):
            first, *rest = _chain(node)
            if first in bound:
                parts = [*bound[first].split("."), *rest]
                known = [n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in self.modules]
                if known:
                    yield ".".join(parts[: known[-1]]), next(iter(parts[known[-1] :]), None)
        elif isinstance(node, ast.Call) and _chain(node.func)[-1] in ("import_module", "__import__"):
            yield from ((ast.literal_eval(one), None) for one in node.args[:1] if _is_text(one))

    def _bound(self, path: str) -> dict[str, str]:
        """Names that stand for modules of the house somewhere in a file."""
        bound = {}
        for node in ast.walk(self.trees[path]):
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if isinstance(node, ast.ImportFrom):
                    whole, local = f"{node.module}.{alias.name}", alias.asname or alias.name
                else:
                    whole = alias.name if alias.asname else _top(alias.name)
                    local = alias.asname or whole
                if whole in self.modules:
                    bound[local] = whole
        return bound


def room(module: str) -> str:
    """The room that a module belongs to: a child of `diagnostics` or of a hall; `cli` is one."""
    parts = module.split(".")
    if parts[0] not in FLOORS or parts[0] == "cli":
        return parts[0]
    if parts[0] == "diagnostics":
        return ".".join(parts[: 3 if ".".join(parts[:2]) in HALLS else 2])
    known = parts[0]
    for part in parts[1:]:
        if known not in HALLS:
            break
        known += f".{part}"
    return known


def relative_imports(house: House) -> list[str]:
    """None but between the files that an exported pipeline carries with it, which lie in one folder wherever it is."""
    own = [one for one in house.imports if one.target[0] == "." and not one.module.startswith(EXPORTED)]
    return [f"{one.place} imports {one.target}: write the full path" for one in own]


def upward_imports(house: House) -> list[str]:
    """`cli -> shadowlab -> diagnostics`, and none of them knows the tests."""
    found = []
    for one in house.imports:
        floor = _top(one.module)
        if floor not in FLOORS:
            continue
        above = {"tests", "scripts", "examples", *FLOORS[FLOORS.index(floor) + 1 :]}
        if floor != "cli":
            above.add("typer")
        if _top(one.target) in above:
            found.append(f"{one.place} imports {one.target}: {floor} does not know what stands above it")
    return found


def foreign_imports(house: House) -> list[str]:
    """`diagnostics` stands on torch and the standard library; TensorBoard is loaded by its writer's methods, a library
    that owns the loop by the module made for it."""
    found = []
    for one in house.imports:
        if _top(one.module) != "diagnostics":
            continue
        if "tensorboard" in one.target and _top(one.target) != "diagnostics":
            allowed = one.module == WRITES_TENSORBOARD and one.deferred
        else:
            own = OWN_LIBRARIES.get(one.module, ())
            allowed = _top(one.target) in {"torch", "diagnostics", *own, *sys.stdlib_module_names}
        if not allowed:
            found.append(f"{one.place} imports {one.target}")
    return found


def early_imports(house: House) -> list[str]:
    """Optional packages are imported where they are used, and `shadowlab --help` does not wait for torch.

    The settings may be there: options are made from the configuration's schema, which needs pydantic alone.
    """
    found = []
    light = {"cli", "typer", *sys.stdlib_module_names}
    for one in house.imports:
        help_waits = _top(one.module) == "cli" and _top(one.target) not in light and one.target != "shadowlab.settings"
        if not one.deferred and (help_waits or _top(one.target) in OPTIONAL):
            found.append(f"{one.place} imports {one.target} at once: import it in the function that uses it")
    return found


def deep_imports(house: House) -> list[str]:
    """From outside of a room only its door is imported, and only what the door exports."""
    found = []
    for one in house.imports:
        if one.target not in house.modules or room(one.target) == room(one.module):
            continue
        door = room(one.target)
        if house.is_package(one.target) and house.exported(one.target) is not None:
            door = one.target  # a room within the room has a door of its own
        is_public = house.is_package(door) or door in OWN_LIBRARIES
        if _top(door) == "diagnostics" != _top(one.module) and not is_public:
            found.append(f"{one.place} imports {one.target}: take it from diagnostics, which is public")
        elif one.target != door:
            found.append(f"{one.place} imports {one.target}: {door} is the door")
        elif one.name and house.is_package(door) and not _is_offered(one.name, house.exported(door)):
            found.append(f"{one.place} imports {one.name}: {door} does not export it")
    return found


def open_halls(house: House) -> list[str]:
    """A hall exports nothing: who wants a room imports the room."""
    return [f"{one.place} imports {one.target}: {one.module} is a hall" for one in house.imports if one.module in HALLS]


def circles(house: House) -> list[str]:
    """Rooms that import each other, directly or through others."""
    arrows: dict[str, dict[str, str]] = defaultdict(dict)
    for one in house.imports:
        if one.target in house.modules and room(one.target) != room(one.module):
            arrows[room(one.module)].setdefault(room(one.target), one.place)
    return [
        f"{place}: {start} -> {end}, which leads back"
        for start, ends in sorted(arrows.items())
        for end, place in sorted(ends.items())
        if _reaches(arrows, end, start)
    ]


def crowded_halls(house: House) -> list[str]:
    found = []
    for hall, most in MOST_ROOMS.items():
        depth = hall.count(".") + 1
        inside = [module for module in house.modules if module.startswith(f"{hall}.")]
        rooms = sorted({module.split(".")[depth] for module in inside})
        if len(rooms) > most:
            found.append(f"{hall} has {len(rooms)} rooms, {most} at most: {', '.join(rooms)}")
    return found


def pickles(house: House) -> list[str]:
    """Files are safetensors and JSON. Evidence of incidents is torch's, read as plain tensors."""
    found = [
        f"{one.place} imports pickle"
        for one in house.imports
        if _top(one.target) == "pickle" and room(one.module) != UNPICKLERS
    ]
    for module, path in house.modules.items():
        for node in ast.walk(house.trees[path]):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called not in {"torch.load", "torch.save"}:
                continue
            assert isinstance(node, ast.Call)
            safe = called == "torch.save" or any(ast.unparse(word) == "weights_only=True" for word in node.keywords)
            if room(module) != UNPICKLERS or not safe:
                found.append(f"{path}:{node.lineno} calls {called}")
    return found


def too_long(house: House) -> dict[str, int]:
    """`path` or `path:function` -> lines, where it has too many."""
    found = {}
    for path, text in house.sources.items():
        if len(text.splitlines()) > MOST_LINES_OF_FILE:
            found[path] = len(text.splitlines())
        for node in ast.walk(house.trees[path]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_FUNCTION:
                    found[f"{path}:{node.name}"] = lines
    return found


def heavy_imports(house: House, package: str = "diffusers") -> list[str]:
    """Light rooms do not load `package`, not through others either. Each line names the way there."""
    loads: dict[str, list[str]] = defaultdict(list)
    for one in house.imports:
        if not one.deferred:
            loads[one.module].append(one.target)
    found = []
    for module in house.modules:
        if any(f"{module}.".startswith(light.rstrip(".") + ".") for light in LIGHT):
            way = _way(loads, house, module, package)
            if way:
                found.append(" -> ".join(way))
    return found


def _way(loads: Mapping[str, list[str]], house: House, start: str, package: str) -> list[str]:
    """Modules from `start` to one that imports `package`; importing a module runs the packages around it, too."""
    ways = {start: [start]}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        for target in [*parents, *loads[module]]:
            if _top(target) == package:
                return [*ways[module], package]
            if target in house.modules and target not in ways:
                ways[target] = [*ways[module], target]
                waiting.append(target)
    return []


def _is_offered(name: str, exported: set[str] | None) -> bool:
    return name.startswith("__") or name in (exported or ())


def _reaches(arrows: Mapping[str, Mapping[str, str]], start: str, goal: str) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        new = set(arrows.get(waiting.pop(), ())) - seen
        seen |= new
        waiting += new
    return goal in seen


def _chain(node: ast.AST) -> list[str]:
    """`a.b.c` as its parts; of anything else than a name at its beginning, an empty first part."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _of_type_checkers(node: ast.AST) -> list[ast.stmt]:
    """The statements of an `if TYPE_CHECKING:`, which do not run; those of its `else` do."""
    return node.body if isinstance(node, ast.If) and _chain(node.test)[-1] == "TYPE_CHECKING" else []


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _top(module: str) -> str:
    return module.split(".")[0]


OPENERS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}
LOADERS = {"json.load", "torch.load", "np.load", "numpy.load", "yaml.load", "yaml.safe_load", "Image.open", "os.fdopen"}
LOADERS |= {"tarfile.open", "shutil.copyfile", "shutil.copy", "shutil.copytree", "load_file", "safe_open"}


def other_openings(house: House, allowed: Mapping[str, str]) -> list[str]:
    """Calls that open a file by another door than `diagnostics.files`.

    Args:
        allowed: `path call` -> the reason why it may; a reason that nothing needs any more is found, too.
    """
    found, used = [], set()
    for path, tree in house.trees.items():
        if path.startswith("diagnostics/files/"):
            continue
        for node in ast.walk(tree):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            dotted, _, name = call.rpartition(".")
            is_opening = call == "open" or call in LOADERS or (bool(dotted) and name in OPENERS)
            if not is_opening or call == "Session.open":  # no file
                continue
            used.add(f"{path} {call}")
            if f"{path} {call}" not in allowed:
                found.append(f"{path}:{node.lineno} calls {call}: take diagnostics.files")
    return found + [f"{one}: nothing calls it, take it off the list" for one in allowed if one not in used]
