"""Imports point one way: handler → use case → {auth, pricing, tokens, providers} → database → bottom.

Two layers stand between use cases and those concerns: what several use cases share (who calls, admission and
settlement, calls of providers, refusals of the database as errors); and `runtime`, which makes a process's
clients and hands them in. Use cases know its type, and import it for nothing else.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FUNCTIONS = Path(__file__).parents[2] / "functions"
GATEWAY = FUNCTIONS / "gateway"

BOTTOM = {
    "assets",
    "errors",
    "http",
    "http_client",
    "http_transport",
    "json_text",
    "multipart",
    "observability",
    "redaction",
    "schemas",
    "sealing",
    "service_urls",
    "settings",
    "telemetry",
}
SHARED = {
    "calls",
    "completions",
    "metering",
    "paging",
    "price_list",
    "principals",
    "refusals",
    "service_check",
    "upstream",
    "webhooks",
    "outbox",
    "alert_topic",
}
# Each layer may import those before it and nothing after it. What stands in no layer is a use case, and above
# these stands the document of all their routes alone.
TOP = "openapi"
LAYERS: list[set[str]] = [
    BOTTOM,
    {"database"},
    {"auth", "auth_tokens", "pricing", "providers", "service_keys", "spool", "tokens", "webhook_endpoint"},
    SHARED,
    {"runtime"},
]
# Within these two one may import another, without a circle; elsewhere nothing imports its own layer.
OPEN_LAYERS = [BOTTOM, SHARED]

MAX_HANDLER_LINES = 40
LIBRARY_AT_HOME = {
    "supabase": "database",
    "postgrest": "database",
    "cryptography": "sealing",
    "jwt": "auth_tokens",
    "opentelemetry": "runtime",
}


def _modules() -> list[Path]:
    return sorted(path for path in FUNCTIONS.rglob("*.py") if "__pycache__" not in path.parts)


def _unit(path: Path) -> str:
    """Return the module or package directly in gateway/ that a file belongs to; "" for gateway itself."""
    part = path.relative_to(GATEWAY).parts[0]
    return "" if part == "__init__.py" else part.removesuffix(".py")


def _rank(unit: str) -> int:
    if unit == TOP:
        return len(LAYERS) + 1
    return next((rank for rank, units in enumerate(LAYERS) if unit in units), len(LAYERS))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(path: Path, *, for_types: bool = True) -> set[str]:
    """Return the dotted names that a file imports, wherever in it."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "gateway" else {base}
        elif for_types or not _is_for_types(node):
            pending += ast.iter_child_nodes(node)
    return names


def _gateway_units(path: Path, *, for_types: bool = True) -> set[str]:
    names = _imports(path, for_types=for_types)
    units = {name.split(".")[1] for name in names if name.startswith("gateway.")}
    # `from gateway import __version__` is no unit.
    return {unit for unit in units if not unit.startswith("__")}


def _breaches(unit: str, imported: str) -> bool:
    if unit == imported or any(unit in layer and imported in layer for layer in OPEN_LAYERS):
        return False
    return _rank(imported) >= _rank(unit)


GATEWAY_FILES = [
    path for path in _modules() if GATEWAY in path.parents and path.parent != GATEWAY / "tokenizers"
]
HANDLERS = [path for path in _modules() if path.name == "handler.py" and path.parent.parent == FUNCTIONS]


@pytest.mark.parametrize("path", GATEWAY_FILES, ids=lambda path: str(path.relative_to(FUNCTIONS)))
def test_imports_point_one_way(path: Path) -> None:
    unit = _unit(path)
    if not unit:
        assert not _gateway_units(path)
        return
    wrong = sorted(imported for imported in _gateway_units(path) if _breaches(unit, imported))
    assert not wrong, f"{unit} imports {', '.join(wrong)}, which does not stand below it"


@pytest.mark.parametrize("path", GATEWAY_FILES, ids=lambda path: str(path.relative_to(FUNCTIONS)))
def test_a_use_case_is_handed_its_clients_and_makes_none(path: Path) -> None:
    if _rank(_unit(path)) >= len(LAYERS):
        assert "runtime" not in _gateway_units(path, for_types=False)


@pytest.mark.parametrize("path", GATEWAY_FILES, ids=lambda path: str(path.relative_to(FUNCTIONS)))
def test_nothing_imports_an_entry_point_or_what_lies_outside(path: Path) -> None:
    outside = {"infra", "tests"} | {
        folder.name for folder in FUNCTIONS.iterdir() if folder.is_dir() and folder.name != "gateway"
    }
    assert not {name.split(".")[0] for name in _imports(path)} & outside


@pytest.mark.parametrize("path", GATEWAY_FILES, ids=lambda path: str(path.relative_to(FUNCTIONS)))
def test_each_library_has_one_home(path: Path) -> None:
    libraries = {name.split(".")[0] for name in _imports(path)}
    for library, home in LIBRARY_AT_HOME.items():
        assert library not in libraries or _unit(path) == home, f"{library} belongs into {home}"


@pytest.mark.parametrize("layer", OPEN_LAYERS, ids=["bottom", "shared"])
def test_an_open_layer_has_no_circle(layer: set[str]) -> None:
    graph: dict[str, set[str]] = {unit: set() for unit in layer}
    for path in GATEWAY_FILES:
        if _unit(path) in layer:
            graph[_unit(path)] |= _gateway_units(path) - {_unit(path)}
    while graph:
        free = [unit for unit, below in graph.items() if not below & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for unit in free:
            del graph[unit]


@pytest.mark.parametrize("path", GATEWAY_FILES, ids=lambda path: str(path.relative_to(FUNCTIONS)))
def test_nothing_reads_the_environment_at_import(path: Path) -> None:
    """No use of os.environ or os.getenv outside a function."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A function's defaults and decorators run at import, its body does not.
            pending += [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
            continue
        if isinstance(node, ast.Lambda):
            continue
        read = isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
        assert not read, f"line {getattr(node, 'lineno', '?')} reads the environment at import"
        pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", HANDLERS, ids=lambda path: path.parent.name)
def test_a_handler_is_short_and_has_no_branch(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_HANDLER_LINES
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Try | ast.For | ast.While | ast.Match), f"line {node.lineno}"


@pytest.mark.parametrize("path", HANDLERS, ids=lambda path: path.parent.name)
def test_a_handler_imports_no_other_function(path: Path) -> None:
    others = {handler.parent.name for handler in HANDLERS} - {path.parent.name}
    assert not {name.split(".")[0] for name in _imports(path)} & others


@pytest.mark.parametrize(
    ("unit", "imported", "breach"),
    [
        ("chat", "providers", False),
        ("chat", "database", False),
        ("chat", "http", False),
        ("chat", "keys", True),
        ("chat", "metering", False),
        ("chat", "runtime", False),
        ("metering", "spool", False),
        ("principals", "refusals", False),
        ("providers", "metering", True),
        ("metering", "chat", True),
        ("providers", "schemas", False),
        ("providers", "database", False),
        ("providers", "auth", True),
        ("providers", "chat", True),
        ("database", "settings", False),
        ("database", "auth", True),
        ("http", "errors", False),
        ("http", "database", True),
        ("errors", "chat", True),
        ("runtime", "http", False),
        ("runtime", "database", False),
        ("runtime", "chat", True),
        ("openapi", "chat", False),
        ("web", "assets", False),
        ("web", "openapi", True),
    ],
)
def test_the_rule_itself(unit: str, imported: str, breach: bool) -> None:
    assert _breaches(unit, imported) is breach


def test_the_files_are_found() -> None:
    assert {"errors", "http", "providers", "auth", "tokens"} <= {_unit(path) for path in GATEWAY_FILES}
