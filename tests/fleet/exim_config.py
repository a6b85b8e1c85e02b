"""The playbook's Exim configuration, rendered on this machine as Ansible does it."""

import re
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROLE = Path(__file__).resolve().parents[2] / "include" / "playbooks" / "roles" / "exim"


def render(**variables: Any) -> str:
    """With the role's defaults; ``exim_helo_name`` is ``mta1.example.com``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["search"] = lambda text, pattern: re.search(pattern, text) is not None  # Ansible's
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    values = defaults | {"exim_helo_name": "mta1.example.com"} | variables
    return environment.get_template("exim4.conf.j2").render(values)
