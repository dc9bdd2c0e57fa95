"""JSON schemas (2020-12) of pydantic's models, with the text below their fields, and examples."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from gateway.schemas.values import Patch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaValue

COMPONENTS = "#/components/schemas/"
_BY_FORMAT = {"date-time": "2026-11-21T12:00:00+00:00", "date": "2026-11-21", "decimal": "12.5"}
_BY_TYPE = {"string": "text", "integer": 1, "number": 1, "boolean": True, "null": None}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().model_schema(schema)
        made.pop("title", None)
        model = schema["cls"]
        fields = made.get("properties", {})
        for name, text in _field_texts(model).items():
            if name in fields:
                fields[name].setdefault("description", text)
        if issubclass(model, Patch):
            for name in fields.keys() - model.nullable:
                _forbid_null(fields[name])
        return made


def components(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Return the schemas of these models and of all that they hold, by name.

    Raises ValueError where two models have one name.
    """
    wanted = sorted(set(models), key=lambda model: model.__name__)
    _, made = models_json_schema(
        [(model, "validation") for model in wanted],
        ref_template=COMPONENTS + "{model}",
        schema_generator=_Generator,
    )
    schemas: dict[str, Any] = made.get("$defs", {})
    if missing := [model.__name__ for model in wanted if model.__name__ not in schemas]:
        raise ValueError(f"there are two models called {', '.join(missing)}")
    return dict(sorted(schemas.items()))


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Return the reference to a model's schema."""
    return {"$ref": COMPONENTS + model.__name__}


def example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """Return an example made of the examples of the schema's parts; what is missing in it has none."""
    if "$ref" in schema and "examples" not in schema:
        return example(schemas[schema["$ref"].removeprefix(COMPONENTS)], schemas)
    for values in ("examples", "enum"):
        if values in schema:
            return schema[values][0]
    for kinds in ("anyOf", "oneOf"):
        if kinds in schema:
            return example(schema[kinds][0], schemas)
    if "const" in schema:
        return schema["const"]
    return _plain_example(schema, schemas)


def _plain_example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "object":
        required = schema.get("required", ())
        return {
            name: example(field, schemas)
            for name, field in schema.get("properties", {}).items()
            if name in required or "examples" in field
        }
    if kind == "array":
        return [example(schema["items"], schemas)] if schema.get("items") else []
    if kind == "integer" and "minimum" in schema:
        return schema["minimum"]
    return _BY_FORMAT.get(schema.get("format", ""), _BY_TYPE.get(kind or ""))


def _forbid_null(field: dict[str, Any]) -> None:
    """Take null out of a field's schema: a field that may be left out may not be null for that."""
    field.pop("default", None)
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del field["anyOf"]
        field.update({**kinds[0], **field})
    elif kinds:
        field["anyOf"] = kinds


def _field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the strings that stand below a model's fields in its source."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls.__module__.startswith("gateway."):
            texts |= _texts_of_module(cls.__module__).get(cls.__qualname__, {})
    return texts


@functools.cache
def _texts_of_module(name: str) -> dict[str, dict[str, str]]:
    """Return the texts of a module's classes by qualified name.

    Read once for all of them: `inspect.getsource` of a class parses its whole module, which took the document
    1.3 s in place of 0.6.
    """
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError):  # made at run time: it has no source, nor texts
        return {}
    return dict(_texts_in(tree.body, ""))


def _texts_in(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            qualified = f"{prefix}{statement.name}"
            yield qualified, _texts_of(statement)
            yield from _texts_in(statement.body, f"{qualified}.")


def _texts_of(cls: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for field, text in itertools.pairwise(cls.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            texts[field.target.id] = inspect.cleandoc(text.value.value).replace("None", "Null")
    return texts
