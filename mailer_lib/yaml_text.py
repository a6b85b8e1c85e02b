"""YAML that people write: where a part of it stands, and how a mistake in it is said."""

from collections.abc import Sequence
from typing import Any

import yaml


def line_of(node: yaml.Node | None, location: Sequence[Any]) -> int:
    """Where in the YAML the deepest part of ``location`` stands that is there, counted from 1."""
    line = 1
    for part in location:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, found = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return line


def sentence_of(error: Any) -> str:
    """One of ``pydantic.ValidationError.errors()``, said to the person who wrote the file."""
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return "there is no such field; check the spelling"
    return message[0].lower() + message[1:]


def syntax_problem(error: yaml.YAMLError) -> str:
    """``, line 3: not valid YAML: …``, to stand after the file's name."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    return f"{where}: not valid YAML: {getattr(error, 'problem', error)}"
