"""YAML files whose mistakes are reported with file, line and field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from atomcsi.errors import ConfigError, did_you_mean

T = TypeVar("T", bound=BaseModel)
#: The kinds of splits and mixes, which pydantic puts between the keys of an error's location.
_KINDS = ("source", "random", "folds", "equal", "tempered", "weighted", "counted", "nearest", "ranked")
#: libyaml's loader, ten times as fast, wherever PyYAML was built with it: Snakemake reads the catalogue for every job.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Entry(BaseModel):
    """Base of all config models: unknown keys are errors that suggest the right one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in values:
                if key not in known:
                    hint = did_you_mean(str(key), known)
                    raise PydanticCustomError("unknown_key", "unknown key{hint}", {"hint": hint, "key": str(key)})
        return values


class YamlSource:
    """A YAML file that remembers where its entries stand."""

    def __init__(self, path: Path, content: Any = None) -> None:
        self.path = path
        self.node: yaml.Node | None = None
        self.content = content
        if content is None:
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError as error:
                raise ConfigError(f"{path}: no such file") from error
            try:
                self.content = yaml.load(text, Loader=_LOADER)
                self.node = yaml.compose(text, Loader=_LOADER)
            except yaml.YAMLError as error:
                raise ConfigError(f"{path}: is no valid YAML: {' '.join(str(error).split())}") from error
            if not isinstance(self.content, dict):
                raise ConfigError(f"{path}: must hold 'key: value' entries")
            self._refuse_duplicates(self.node)

    def _refuse_duplicates(self, node: yaml.Node) -> None:
        """YAML's loader takes the last of two equal keys without a word."""
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            for key, value in node.value:
                if keys.count(key.value) > 1:
                    raise ConfigError(f"{self.path}:{key.start_mark.line + 1}: '{key.value}' is given twice")
                self._refuse_duplicates(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._refuse_duplicates(value)

    def parse(self, model: type[T], content: Any, prefix: tuple[str, ...] = ()) -> T:
        """Validates ``content`` and turns the first problem into a ConfigError."""
        try:
            return model.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            loc = _keys(first["loc"], content, missing=first["type"] == "missing")
            context = first.get("ctx", {})
            if first["type"] == "unknown_key":
                loc = (*loc, context["key"])
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "literal_error" and isinstance(first["input"], str):
                message += did_you_mean(first["input"], re.findall(r"'([^']*)'", context["expected"]))
            elif first["type"] not in ("unknown_key", "missing", "value_error"):
                message += f", not {first['input']!r}"
            raise self.error((*prefix, *loc), message) from None

    def parse_all(self, model: type[T], id_pattern: str) -> dict[str, T]:
        """Validates a catalogue file: id -> entry; every id must match ``id_pattern``."""
        self.check_ids(id_pattern)
        return {name: self.parse(model, entry, (name,)) for name, entry in self.content.items()}

    def check_ids(self, id_pattern: str, *loc: str) -> None:
        """Checks that the entry at ``loc`` maps ids, which match ``id_pattern``, to mappings."""
        entries = self.content
        for part in loc:
            entries = entries[part]
        if not isinstance(entries, dict):
            raise self.error(loc, "must hold 'id: entry' pairs")
        for name, entry in entries.items():
            if not re.fullmatch(id_pattern, str(name)):
                raise self.error((*loc, name), "an id has lower-case letters, digits and single hyphens")
            if not isinstance(entry, dict):
                raise self.error((*loc, name), f"must hold 'key: value' entries, not {entry!r}")

    def known(self, *loc: str | int, name: str, entries: Any, kind: str) -> None:
        """Checks that ``name`` is one of ``entries``."""
        if name not in entries:
            raise self.error(loc, f"unknown {kind} '{name}'{did_you_mean(name, entries)}")

    def error(self, loc: tuple[str | int, ...], problem: str) -> ConfigError:
        """Returns a ConfigError with the line of the entry at ``loc``, or of its nearest parent that exists."""
        node, line = self.node, None
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
                if match is None:
                    break
                line, node = match[0].start_mark.line + 1, match[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        where = f"{self.path}:{line}" if line else f"{self.path}"
        return ConfigError(": ".join(filter(None, (where, ".".join(map(str, loc)), problem))))


def _keys(loc: tuple[str | int, ...], content: Any, *, missing: bool) -> tuple[str | int, ...]:
    """Returns the location of an error without kinds of splits and mixes, unless they are keys of the content too."""
    keys = []
    for position, part in enumerate(loc):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if part in _KINDS and not (missing and position == len(loc) - 1):
                continue
            content = None
        keys.append(part)
    return tuple(keys)


def laid_over(base: Any, own: Any) -> Any:
    """Returns ``own``; where both are mappings, ``base`` with the keys of ``own`` laid over its own, at every depth."""
    if not (isinstance(base, Mapping) and isinstance(own, Mapping)):
        return own
    return {**base, **{key: laid_over(base.get(key), value) for key, value in own.items()}}
