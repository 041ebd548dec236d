"""The rules of style that a program can check. Each takes a file's path and its syntax tree and yields what is wrong.

A rule without a tool is a wish: what CONTRIBUTING.md says about code is enforced here, by import-linter or by ruff.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

Rule = Callable[[str, ast.Module], Iterator[str]]

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 80
PAUSE_SECONDS_MAX = 0.1
NAMELESS = frozenset({"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"})

ADAPTERS = (
    "cluster/wire/",
    "cluster/local/",
    "node/transport/",
    "node/storage/disk.py",
    "node/storage/rocks_state.py",
    "client/cli/",
    "client/sync.py",
    "tests/",
)
"""Where the machine's own loop, threads and processes are met; the simulator replaces all of it."""

FILE_OPENERS = (
    "node/storage/",
    "cluster/local/",
    "chaos/",
    "client/cli/",
    "client/bench/report.py",
    "node/__main__.py",
    "proto/generate.py",
    "tests/",
)

CONTAINERS = frozenset(
    {"list", "dict", "set", "bytearray", "defaultdict", "deque", "OrderedDict", "Counter", "SortedDict"}
)
MUTATORS = frozenset(
    {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "discard"}
)
FORBIDDEN_CALLS = frozenset({"TaskGroup", "wait", "as_completed", "to_thread"})
FORBIDDEN_IMPORTS = frozenset({"threading", "concurrent", "multiprocessing"})
PATH_METHODS = frozenset({"read_text", "write_text", "read_bytes", "write_bytes"})


def short_names(path: str, tree: ast.Module) -> Iterator[str]:
    """A module is named after what it holds."""
    for part in path.removesuffix(".py").split("/"):
        if part in NAMELESS:
            yield f"{path}: {part!r} says nothing about what is inside"


def short_functions(path: str, tree: ast.Module) -> Iterator[str]:
    for each in ast.walk(tree):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (each.end_lineno or each.lineno) - each.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{each.lineno}: {each.name} has {lines} lines, more than {FUNCTION_LINES_MAX}"


def docstrings(path: str, tree: ast.Module) -> Iterator[str]:
    """A module opens with what it is for; an empty one has nothing to say."""
    if tree.body and not ast.get_docstring(tree):
        yield f"{path}:1: no docstring"


def no_module_state(path: str, tree: ast.Module) -> Iterator[str]:
    """Two nodes live in one process in the simulator: what a module holds, they would share."""
    if path.startswith("tests/"):
        return
    held: set[str] = set()
    for each in tree.body:
        for name in _containers(each):
            held.add(name)
            if not name.isupper() and not name.startswith("__"):
                yield f"{path}:{each.lineno}: {name} is a mutable container at module level"
    for each in ast.walk(tree):
        if isinstance(each, ast.Global):
            yield f"{path}:{each.lineno}: global {', '.join(each.names)}"
        elif (name := _mutated(each)) in held:
            yield f"{path}:{getattr(each, 'lineno', 0)}: {name} is changed after it was made"


def _containers(statement: ast.stmt) -> list[str]:
    """Names that a module-level statement binds to a mutable container."""
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets, value = [statement.target], statement.value
    else:
        return []
    literal = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
    called = isinstance(value, ast.Call) and _last_name(value.func) in CONTAINERS
    return [each.id for each in targets if isinstance(each, ast.Name)] if literal or called else []


def _mutated(node: ast.AST) -> str | None:
    """The bare name that this node changes in place, if any."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        return node.func.value.id if isinstance(node.func.value, ast.Name) else None
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return node.value.id if isinstance(node.value, ast.Name) else None
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def one_loop(path: str, tree: ast.Module) -> Iterator[str]:
    """No threads, and none of asyncio's tools that go through sets ordered by identity: a seed could not repeat them."""
    if path.startswith(ADAPTERS):
        return
    for each in ast.walk(tree):
        modules: list[str] = []
        if isinstance(each, ast.Import):
            modules = [alias.name for alias in each.names]
        elif isinstance(each, ast.ImportFrom) and each.module and not each.level:
            modules = [each.module]
            if each.module == "asyncio":
                for alias in each.names:
                    if alias.name in FORBIDDEN_CALLS:
                        yield f"{path}:{each.lineno}: asyncio.{alias.name} outside an adapter"
        elif isinstance(each, ast.Attribute) and each.attr in FORBIDDEN_CALLS and _last_name(each.value) == "asyncio":
            yield f"{path}:{each.lineno}: asyncio.{each.attr} outside an adapter"
        if isinstance(each, ast.Attribute) and each.attr == "run_in_executor":
            yield f"{path}:{each.lineno}: a thread outside an adapter"
        for module in modules:
            if module.split(".")[0] in FORBIDDEN_IMPORTS:
                yield f"{path}:{each.lineno}: import of {module} outside an adapter"


def files_in_their_place(path: str, tree: ast.Module) -> Iterator[str]:
    """Files are opened where the disk port has its real side, where a user's file is meant, and by the judges."""
    if path.startswith(FILE_OPENERS):
        return
    for each in ast.walk(tree):
        if not isinstance(each, ast.Call):
            continue
        function = each.func
        builtin = isinstance(function, ast.Name) and function.id == "open"
        system = (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and (function.value.id, function.attr) == ("os", "open")
        )
        if builtin or system or (isinstance(function, ast.Attribute) and function.attr in PATH_METHODS):
            yield f"{path}:{each.lineno}: opens a file"


def no_sleeping_tests(path: str, tree: ast.Module) -> Iterator[str]:
    """A test waits for a condition, never for a time. What remains: sleep(0), which only yields; a pause between two looks at
    what another process does (a `while` loop); a twin that is slow on purpose (a class)."""
    if not path.startswith("tests/"):
        return
    allowed = {
        id(call)
        for place in ast.walk(tree)
        if isinstance(place, ast.While) or (isinstance(place, ast.ClassDef) and not place.name.startswith("Test"))
        for call in ast.walk(place)
        if isinstance(place, ast.ClassDef) or _is_short_sleep(call)
    }
    for each in ast.walk(tree):
        if not isinstance(each, ast.Call) or _last_name(each.func) != "sleep":
            continue
        if id(each) not in allowed and not _is_short_sleep(each, longest_s=0):
            yield f"{path}:{each.lineno}: sleeps"


def _is_short_sleep(node: ast.AST, longest_s: float = PAUSE_SECONDS_MAX) -> bool:
    if not (isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Constant)):
        return False
    return isinstance(node.args[0].value, int | float) and node.args[0].value <= longest_s


RULES: tuple[Rule, ...] = (
    short_names,
    short_functions,
    docstrings,
    no_module_state,
    one_loop,
    files_in_their_place,
    no_sleeping_tests,
)
