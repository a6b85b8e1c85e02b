"""SQL that a person may want to read: ``include/sql/<name>.sql``, by name."""

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "sql", _PACKAGE.parent / "include" / "sql")  # of the wheel (pyproject.toml), of a checkout


@cache
def named_sql(name: str) -> str:
    """The statement, with its comments. Names are constants of the code that asks."""
    for folder in _FOLDERS:
        path = folder / f"{name}.sql"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{name}.sql is in none of {', '.join(str(folder) for folder in _FOLDERS)}")
