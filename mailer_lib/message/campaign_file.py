"""``campaign.yaml`` and the template files beside it: read, checked, and every mistake named with its line."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mailer_lib.message.campaign import Campaign, CampaignError
from mailer_lib.yaml_text import line_of, sentence_of, syntax_problem

_INCLUDE = re.compile(r"\{%-?\s*include\s+([\"'])([^\"']+)\1\s*-?%\}")
_MAX_DEPTH = 8
_KINDS = ("mjml", "html")


def load_campaign(path: Path) -> Campaign:
    """A campaign with its templates read in; file names are relative to the YAML's folder.

    Raises:
        CampaignError: a sentence for each problem, with file, line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except FileNotFoundError:
        raise CampaignError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise CampaignError(f"{path} isn't UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise CampaignError(f"{path}{syntax_problem(error)}") from None
    if not isinstance(data, dict):
        raise CampaignError(f"{path}: a campaign is a mapping that begins with `name:`")
    problems: list[str] = []

    def say(location: tuple[Any, ...], sentence: str) -> None:
        line = line_of(tree, location)
        field = ".".join(str(part) for part in location)
        problems.append(f"{path}, line {line}, {field}: {sentence}" if field else f"{path}: {sentence}")

    _read_template(data, ("template",), path.parent, say)
    if isinstance(data.get("variants"), list):
        for number, variant in enumerate(data["variants"]):
            if isinstance(variant, dict) and "template" in variant:
                _read_template(variant, ("variants", number, "template"), path.parent, say)
    if not problems:
        try:
            return Campaign.model_validate(data)
        except ValidationError as error:
            for one in error.errors():
                say(tuple(part for part in one["loc"]), sentence_of(one))
    raise CampaignError("\n".join(problems))


def _read_template(holder: dict[str, Any], location: tuple[Any, ...], folder: Path, say: Any) -> None:
    """Replace ``{mjml|html: FILE, text: FILE}`` by the files' contents."""
    given = holder.get("template")
    kinds = [kind for kind in _KINDS if isinstance(given, dict) and kind in given]
    if not isinstance(given, dict) or len(kinds) != 1:
        say(location, "write `mjml: FILE` or `html: FILE`, and `text: FILE` if you write the text part yourself")
        return
    unknown = sorted(set(map(str, given)) - {*_KINDS, "text"})
    if unknown:
        say((*location, unknown[0]), "there is no such field; there are mjml, html and text")
        return
    made: dict[str, Any] = {"kind": kinds[0]}
    for field, content, name in ((kinds[0], "source", "file"), ("text", "text", "text_file")):
        if given.get(field) is not None:
            try:
                made[content] = _read(folder, folder / str(given[field]), ())
                made[name] = str(given[field])
            except CampaignError as error:
                say((*location, field), str(error))
    holder["template"] = made


def _read(folder: Path, path: Path, parents: tuple[Path, ...]) -> str:
    """A template file, with ``{% include "FILE" %}`` replaced by the file's text: it is compiled as one."""
    if path in parents or len(parents) > _MAX_DEPTH:
        raise CampaignError(f"{path.name} includes itself, directly or through others")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CampaignError(f"{path.name} lies outside the campaign's folder; put it beside the YAML")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise CampaignError(f"there is no file {path}; file names are relative to the YAML's folder") from None
    except UnicodeDecodeError:
        raise CampaignError(f"{path} isn't UTF-8; save it as UTF-8") from None
    return _INCLUDE.sub(lambda match: _read(folder, path.parent / match[2], (*parents, path)), text)
