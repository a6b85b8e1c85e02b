"""One condition in two forms: what MySQL and MariaDB answer quickly, and what SQLite does."""

from typing import Any

from sqlalchemy import Boolean, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class _either(FunctionElement[bool]):  # noqa: N801  SQL functions are written in lower case
    inherit_cache = True
    name = "either"
    type = Boolean()


@compiles(_either)
def _mysql(element: _either, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(next(iter(element.clauses)), **kw)})"


@compiles(_either, "sqlite")
def _sqlite(element: _either, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process([*element.clauses][1], **kw)})"


def either(mysql: ColumnElement[bool], sqlite: ColumnElement[bool]) -> ColumnElement[bool]:
    """Both must mean the same."""
    return _either(mysql, sqlite)
