"""Values inside JSON columns, and text compared byte by byte: what both databases write differently, with one meaning.

``json_text``, ``json_number`` and ``json_boolean`` read one key: NULL when it is missing or JSON null. The stored value
has the declared type, which ``contacts`` sees to. ``json_list`` is a list of texts as JSON text, ``json_items`` its
items as a table of one column, ``item``. ``byte_text`` compares trailing spaces too: MariaDB's default collation takes
Zoë for zoe and "a" for "a ".
"""

import json
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Float, String, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_BYTEWISE = "COLLATE utf8mb4_nopad_bin"


class json_text(FunctionElement[str]):  # noqa: N801  SQL functions are written in lower case
    inherit_cache = True
    name = "json_text"
    type = Text()


class json_number(FunctionElement[float]):  # noqa: N801
    inherit_cache = True
    name = "json_number"
    type = Float()


class json_boolean(FunctionElement[int]):  # noqa: N801
    """1 or 0."""

    inherit_cache = True
    name = "json_boolean"
    type = BigInteger()


class json_list(FunctionElement[str]):  # noqa: N801
    inherit_cache = True
    name = "json_list"
    type = Text()


class json_items(FunctionElement[str]):  # noqa: N801
    """No row for NULL or an empty list."""

    inherit_cache = True
    name = "json_items"
    type = Text()


class byte_text(FunctionElement[str]):  # noqa: N801
    inherit_cache = True
    name = "byte_text"
    type = Text()


@compiles(json_text)
def _json_text(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"JSON_VALUE({compiler.process(element.clauses, **kw)}) {_BYTEWISE}"


@compiles(json_text, "sqlite")
def _json_text_sqlite(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(json_extract({compiler.process(element.clauses, **kw)}) AS TEXT)"


@compiles(json_number)
def _json_number(element: json_number, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(JSON_VALUE({compiler.process(element.clauses, **kw)}) AS DOUBLE)"


@compiles(json_number, "sqlite")
def _json_number_sqlite(element: json_number, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(json_extract({compiler.process(element.clauses, **kw)}) AS REAL)"


@compiles(json_boolean)
def _json_boolean(element: json_boolean, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(JSON_VALUE({compiler.process(element.clauses, **kw)}) AS SIGNED)"


@compiles(json_boolean, "sqlite")
def _json_boolean_sqlite(element: json_boolean, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **kw)})"


@compiles(json_list)
def _json_list(element: json_list, compiler: SQLCompiler, **kw: Any) -> str:
    return f"NULLIF(JSON_EXTRACT({compiler.process(element.clauses, **kw)}), 'null')"


@compiles(json_list, "sqlite")
def _json_list_sqlite(element: json_list, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **kw)})"


@compiles(json_items)
def _json_items(element: json_items, compiler: SQLCompiler, **kw: Any) -> str:
    columns = f"COLUMNS (item VARCHAR(1000) CHARACTER SET utf8mb4 {_BYTEWISE} PATH '$')"
    return f"JSON_TABLE(JSON_EXTRACT({compiler.process(element.clauses, **kw)}), '$[*]' {columns})"


@compiles(json_items, "sqlite")
def _json_items_sqlite(element: json_items, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(SELECT value AS item FROM json_each({compiler.process(element.clauses, **kw)}))"  # noqa: S608  no text of users


@compiles(byte_text)
def _byte_text(element: byte_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.clauses, **kw)} {_BYTEWISE}"


@compiles(byte_text, "sqlite")
def _byte_text_sqlite(element: byte_text, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


def json_path(key: str) -> ColumnElement[str]:
    """The path of one key, bound: ``$."key"``."""
    return literal(f"$.{json.dumps(key, ensure_ascii=False)}", String())
