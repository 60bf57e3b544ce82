"""The directive ``config-entry``: the keys of a config entry as a table, from its pydantic model and its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

from atomcsi.catalogue import ID_PATTERN

Schema = Mapping[str, Any]

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_PLAIN = {"boolean": "true or false", "null": "nothing", "string": "text"}


class ConfigEntry(SphinxDirective):
    """Tabulates the model that its argument names, ``module.Class``; entries in entries are links to their tables."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the label that links find, the docstring's text and the table."""
        module, _, name = self.arguments[0].rpartition(".")
        model = getattr(import_module(module), name)
        self.env.note_dependency(inspect.getfile(model))
        return self.parse_text_to_nodes("\n".join(_page(model)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes the directive known to Sphinx."""
    app.add_directive("config-entry", ConfigEntry)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _page(model: type[BaseModel]) -> Iterator[str]:
    """Yields the lines of the entry, in reStructuredText."""
    text, _ = _documentation(model)
    meanings = {name: meaning for base in reversed(model.__mro__) for name, meaning in _documentation(base)[1].items()}
    schema = model.model_json_schema()
    yield from (f".. _config-{model.__name__}:", "", f".. rubric:: {model.__name__}", "", *text, "")
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: 18 27 12 43", "")
    yield from _row("key", "what", "default", "meaning")
    for name, field in model.model_fields.items():
        entry = schema["properties"][name]
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        yield from _row(f"``{name}``", _kind(entry), default, meanings.get(name, ""))


def _row(*cells: str) -> Iterator[str]:
    for position, cell in enumerate(cells):
        yield f"   {'*' if position == 0 else ' '} - {cell}".rstrip()


def _documentation(model: type) -> tuple[list[str], dict[str, str]]:
    """Returns the text of a docstring, as lines, and what its section on attributes says, by attribute."""
    if not issubclass(model, BaseModel) or model.__doc__ is None:
        return [], {}
    lines = GoogleDocstring(inspect.cleandoc(model.__doc__), Config(napoleon_use_ivar=True)).lines()
    attributes = re.findall(r"^:ivar (\w+): (.*(?:\n .*)*)", "\n".join(lines), re.MULTILINE)
    first = next((number for number, line in enumerate(lines) if line.startswith(":ivar ")), len(lines))
    return lines[:first], {name: " ".join(meaning.split()) for name, meaning in attributes}


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if value in ({}, [], ""):
        return "empty"
    return f"``{str(value).lower() if isinstance(value, bool) else value}``"


def _kind(schema: Schema) -> str:
    """Says in words what JSON schema says of a value."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f":ref:`{name} <config-{name}>`"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [_kind(option) for option in schema[key] if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"``{schema['const']}``"
    if "enum" in schema:
        return ", ".join(f"``{value}``" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            parts = schema.get("prefixItems")
            return f"list of {len(parts)}: {_kind(parts[0])}" if parts else f"list: {_kind(schema['items'])}"
        case "object":
            return _mapping(schema)
        case "integer" | "number" as kind:
            bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
            multiple = [f"multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
            return " ".join([kind, ", ".join(bounds + multiple)]).strip()
        case "string" if schema.get("pattern") == f"^{ID_PATTERN}$":
            return "id"
        case "string" if "pattern" in schema:
            return f"text like ``{schema['pattern']}``"
        case "string" if schema.get("format") == "path":
            return "path"
        case kind:
            return _PLAIN.get(kind, "anything")


def _mapping(schema: Schema) -> str:
    if patterns := schema.get("patternProperties"):
        ((pattern, value),) = patterns.items()
        return f"mapping: {_kind({'type': 'string', 'pattern': pattern})} → {_kind(value)}"
    values = schema.get("additionalProperties", True)
    keys = _kind(schema.get("propertyNames", {"type": "string"}))
    return f"mapping: {keys} → {_kind({} if values is True else values)}"
