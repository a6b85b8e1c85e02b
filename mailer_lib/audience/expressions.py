"""SQL that both databases write differently, as SQLAlchemy functions with one meaning.

``json_text``, ``json_number`` and ``json_boolean`` read one attribute: NULL when the key is missing or JSON null. The
stored value has the declared type, which ``contacts`` sees to. ``byte_text`` compares a text byte by byte, trailing
spaces included: MariaDB's default collation takes Zoë for zoe and "a" for "a ".

``json_list`` is a list of texts as JSON text, ``json_items`` its items as a table of one column, ``item``.
``sample_point`` is SHA-256 of seed and address hash, 64 hex digits: where a contact stands in the order that a random
sample takes them in.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Float, String, Text, exists, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from mailer_lib.audience.catalogue import Field, FieldKind
from mailer_lib.database.schema import contacts, subscriptions

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


class sample_point(FunctionElement[str]):  # noqa: N801
    inherit_cache = True
    name = "sample_point"
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


@compiles(sample_point)
def _sample_point(element: sample_point, compiler: SQLCompiler, **kw: Any) -> str:
    return f"SHA2(CONCAT({compiler.process(element.clauses, **kw)}), 256)"


@compiles(sample_point, "sqlite")
def _sample_point_sqlite(element: sample_point, compiler: SQLCompiler, **kw: Any) -> str:
    return f"mailfleet_sample_point({compiler.process(element.clauses, **kw)})"  # database.engine


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
    FieldKind.ENUM: json_text,
    FieldKind.TEXT_LIST: json_list,
}


def field_expression(field: Field) -> ColumnElement[Any]:
    """The value of a contact's field: text, float, 1/0, ISO day or UTC datetime, JSON text of a list.

    NULL when it is missing.
    """
    if field.attribute is not None:
        return _READERS[field.kind](contacts.c.attributes, _path(field))
    assert field.column is not None, f"{field.name} is no value of a contact"
    value: ColumnElement[Any] = contacts.c[field.column] if field.list_id is None else _of_subscription(field)
    return value if field.bytewise or field.kind != FieldKind.TEXT else byte_text(value)


def has_item(field: Field, items: Sequence[Any]) -> ColumnElement[bool]:
    """A list of texts has at least one of ``items``; false when it is missing."""
    listed = json_items(contacts.c.attributes, _path(field)).table_valued("item", name="listed")
    return exists(select(literal(1)).select_from(listed).where(listed.c.item.in_(items)))


def _of_subscription(field: Field) -> ColumnElement[Any]:
    """By primary key, so it costs one look-up a contact."""
    assert field.column is not None
    mine = subscriptions.alias("subscription")
    found = select(mine.c[field.column]).where(mine.c.contact_id == contacts.c.id, mine.c.list_id == field.list_id)
    return found.correlate(contacts).scalar_subquery()


def _path(field: Field) -> ColumnElement[str]:
    return literal(f"$.{json.dumps(field.attribute, ensure_ascii=False)}", String())
