"""SQL that both databases write differently, as SQLAlchemy functions with one meaning.

``json_text``, ``json_number`` and ``json_boolean`` read one attribute: NULL when the key is missing or JSON null. The
stored value has the declared type, which ``contacts`` sees to. ``byte_text`` compares a text byte by byte, trailing
spaces included: MariaDB's default collation takes Zoë for zoe and "a" for "a ".
"""

import json
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Float, String, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from mailer_lib.audience.catalogue import Field, FieldKind
from mailer_lib.database.schema import contacts

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


@compiles(byte_text)
def _byte_text(element: byte_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.clauses, **kw)} {_BYTEWISE}"


@compiles(byte_text, "sqlite")
def _byte_text_sqlite(element: byte_text, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


_READERS: dict[FieldKind, type[FunctionElement[Any]]] = {
    FieldKind.TEXT: json_text,
    FieldKind.DATE: json_text,
    FieldKind.NUMBER: json_number,
    FieldKind.BOOLEAN: json_boolean,
}


def field_expression(field: Field) -> ColumnElement[Any]:
    """The value of a contact's field: text, float, 1/0, ISO day or UTC datetime; NULL when it is missing."""
    if field.attribute is not None:
        path = literal(f"$.{json.dumps(field.attribute, ensure_ascii=False)}", String())
        return _READERS[field.kind](contacts.c.attributes, path)
    assert field.column is not None, f"{field.name} is no value of a contact"
    column: ColumnElement[Any] = contacts.c[field.column]
    return column if field.bytewise or field.kind != FieldKind.TEXT else byte_text(column)
