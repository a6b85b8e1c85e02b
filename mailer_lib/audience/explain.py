"""How a database would find the people of a tree, and where an index would save it from reading all of them.

A snapshot reads contacts in ranges of ids whatever the tree; the plan here is that of asking once who they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ClauseElement, ColumnElement, Connection, Executable, Select, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from mailer_lib.audience.catalogue import FieldKind, Operator
from mailer_lib.audience.rules import Group, Rule
from mailer_lib.database.schema import contacts

_BY_INDEX = frozenset({"domain", "provider"})
# What an index on a value could answer; the others look at each value anyway.
_INDEXABLE = frozenset(
    {
        Operator.EQ,
        Operator.LT,
        Operator.LE,
        Operator.GT,
        Operator.GE,
        Operator.IN,
        Operator.BETWEEN,
        Operator.IN_LAST_DAYS,
        Operator.BEFORE_LAST_DAYS,
        Operator.IN_NEXT_DAYS,
    }
)


@dataclass(frozen=True)
class Explanation:
    plan: tuple[str, ...]  # the database's own words, one step a line
    warnings: tuple[str, ...]


class _Explain(Executable, ClauseElement):
    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain)
def _explain(element: _Explain, compiler: SQLCompiler, **kw: Any) -> str:
    return f"EXPLAIN {compiler.process(element.statement, **kw)}"


@compiles(_Explain, "sqlite")
def _explain_sqlite(element: _Explain, compiler: SQLCompiler, **kw: Any) -> str:
    return f"EXPLAIN QUERY PLAN {compiler.process(element.statement, **kw)}"


def explain(connection: Connection, group: Group, condition: ColumnElement[bool]) -> Explanation:
    """The plan for ``condition``, which was made of ``group``."""
    rows = [dict(row) for row in connection.execute(_Explain(select(contacts.c.id).where(condition))).mappings()]
    sqlite = connection.dialect.name == "sqlite"
    plan = tuple(_sqlite_lines(rows) if sqlite else map(_mysql_line, rows))
    return Explanation(plan, tuple(_warnings(group)) if _reads_all(rows, sqlite) else tuple(_sample_warnings(group)))


def _sqlite_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    depth = {0: -1}
    for row in rows:
        depth[row["id"]] = depth.get(row["parent"], -1) + 1
        yield "  " * depth[row["id"]] + str(row["detail"])


def _mysql_line(row: dict[str, Any]) -> str:
    shown = ("id", "select_type", "table", "type", "key", "ref", "rows", "Extra")
    return "  ".join(f"{name}={row[name]}" for name in shown if row.get(name) not in {None, ""})


def _reads_all(rows: list[dict[str, Any]], sqlite: bool) -> bool:
    if sqlite:
        return any(str(row["detail"]).startswith("SCAN contacts") for row in rows)
    return any(row.get("table") == "contacts" and row.get("type") in {"ALL", "index"} for row in rows)


def _warnings(group: Group) -> Iterator[str]:
    yield "every contact is read"
    named: set[str] = set()
    for rule in _would_help(group):
        field = rule.field
        if field.name in named or field.column in _BY_INDEX or field.indexed:
            continue
        named.add(field.name)
        if field.attribute is not None:
            yield (
                f"{field.name} is read out of each contact's JSON; `mailfleet attributes index {field.attribute}` "
                "would avoid it"
            )
        elif field.list_id is not None:
            yield f"{field.name} is looked up for each contact; a rule on the list itself is answered by an index"
        elif field.column is not None:
            yield f"{field.name} has no index; one on contacts.{field.column} would avoid it"
    yield from _sample_warnings(group)


def _would_help(group: Group) -> Iterator[Rule]:
    if group.negated:
        return
    for member in group.members:
        if isinstance(member, Group):
            yield from _would_help(member)
        elif member.operator in _INDEXABLE and member.field.kind not in {FieldKind.LIST, FieldKind.TEXT_LIST}:
            yield member


def _sample_warnings(group: Group) -> Iterator[str]:
    for member in group.members:
        if isinstance(member, Group):
            yield from _sample_warnings(member)
    if group.sample is not None and group.sample.count is not None:
        whose = f' of "{group.sample.criteria}"' if group.sample.criteria else ""
        yield f"the sample{whose} by number needs one more pass over all who match; a percentage needs none"
