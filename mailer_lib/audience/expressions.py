"""A field of the catalogue as SQL: the value that a contact has for it.

``sample_point`` is SHA-256 of seed and address hash, 64 hex digits: where a contact stands in the order that a random
sample takes them in.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, exists, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from mailer_lib.audience.catalogue import Field, FieldKind
from mailer_lib.database.generated import generated_column
from mailer_lib.database.json_values import (
    byte_text,
    json_boolean,
    json_items,
    json_list,
    json_number,
    json_path,
    json_text,
)
from mailer_lib.database.schema import contacts, subscriptions
from mailer_lib.terms import AttributeType


class sample_point(FunctionElement[str]):  # noqa: N801
    inherit_cache = True
    name = "sample_point"
    type = Text()


@compiles(sample_point)
def _sample_point(element: sample_point, compiler: SQLCompiler, **kw: Any) -> str:
    return f"SHA2(CONCAT({compiler.process(element.clauses, **kw)}), 256)"


@compiles(sample_point, "sqlite")
def _sample_point_sqlite(element: sample_point, compiler: SQLCompiler, **kw: Any) -> str:
    return f"mailfleet_sample_point({compiler.process(element.clauses, **kw)})"  # database.engine


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

    NULL when it is missing. An attribute that is indexed is asked of its generated column: the same value.
    """
    if field.attribute is not None and field.indexed:
        return generated_column(field.attribute, AttributeType(field.kind.value))
    if field.attribute is not None:
        return _READERS[field.kind](contacts.c.attributes, json_path(field.attribute))
    assert field.column is not None, f"{field.name} is no value of a contact"
    value: ColumnElement[Any] = contacts.c[field.column] if field.list_id is None else _of_subscription(field)
    return value if field.bytewise or field.kind != FieldKind.TEXT else byte_text(value)


def has_item(field: Field, items: Sequence[Any]) -> ColumnElement[bool]:
    """A list of texts has at least one of ``items``; false when it is missing."""
    assert field.attribute is not None
    listed = json_items(contacts.c.attributes, json_path(field.attribute)).table_valued("item", name="listed")
    return exists(select(literal(1)).select_from(listed).where(listed.c.item.in_(items)))


def _of_subscription(field: Field) -> ColumnElement[Any]:
    """By primary key, so it costs one look-up a contact."""
    assert field.column is not None
    mine = subscriptions.alias("subscription")
    found = select(mine.c[field.column]).where(mine.c.contact_id == contacts.c.id, mine.c.list_id == field.list_id)
    return found.correlate(contacts).scalar_subquery()
