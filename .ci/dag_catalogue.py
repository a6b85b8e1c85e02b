"""docs/dags.md: a page of all DAGs, made from their docstrings. ``--check`` only says whether it is up to date."""

import ast
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "dags.md"
HEAD = """# The DAGs

Made by `python .ci/dag_catalogue.py` from the docstrings in `dags/`; the same text is each DAG's page in Airflow.

"""


def catalogue() -> str:
    """The page as Markdown: a table, then every DAG's own page one level down."""
    pages = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in sorted(_files())}
    rows = [f"| [{name}](#{name}) | {_title(text)} |" for name, text in pages.items()]
    parts = [HEAD + "| DAG | what it does |\n| --- | --- |\n" + "\n".join(rows) + "\n"]
    parts += [f"\n## {name}\n\n{_one_level_down(text)}\n" for name, text in pages.items()]
    return "".join(parts)


def _files() -> list[Path]:
    return list((PROJECT / "dags").glob("*.py"))


def _title(text: str) -> str:
    return text.strip().splitlines()[0].lstrip("# ") if text.strip() else ""


def _one_level_down(text: str) -> str:
    lines = text.strip().splitlines()
    lines[0] = f"**{_title(text)}.**"
    return "\n".join("#" + line if line.startswith("#") else line for line in lines)


def main() -> int:
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text() == catalogue() else 1
    PAGE.write_text(catalogue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
