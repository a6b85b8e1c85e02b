"""Which release this is. Centre and agent must be of the same one (docs/decisions/0608)."""

import tomllib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@lru_cache(maxsize=1)
def release() -> str:
    """The installed wheel's version; in a checkout that isn't installed, what pyproject.toml says."""
    try:
        return version("mailfleet")
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        return str(project["project"]["version"])
