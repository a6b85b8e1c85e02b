"""``profile.yaml``: read, checked, and every mistake named with its line and field."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mailer_lib.contacts.profile import Profile
from mailer_lib.yaml_text import line_of, sentence_of, syntax_problem

Location = tuple[str | int, ...]


class ProfileError(ValueError):
    """A profile can't be used; a sentence for each problem, with file, line and field."""


@dataclass(frozen=True)
class LoadedProfile:
    profile: Profile
    path: Path
    tree: yaml.Node

    def error(self, problems: Sequence[tuple[Location, str]]) -> ProfileError:
        """Of problems at these places."""
        return ProfileError("\n".join(_said(self.path, self.tree, place, what) for place, what in problems))


def load_profile(path: Path) -> LoadedProfile:
    """Read a profile. Whether its columns are in a file and its lists are here, only an import knows.

    Raises:
        ProfileError: a sentence for each problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.load(text, Loader=yaml.BaseLoader)  # texts only: no boolean, number or date is guessed
    except FileNotFoundError:
        raise ProfileError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{path} isn't UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}{syntax_problem(error)}") from None
    if not isinstance(data, dict) or tree is None:
        raise ProfileError(f"{path}: a profile is a mapping with fields:, consent: and lists:")
    problems = list(_twice(tree, ()))
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        problems += [(one["loc"], sentence_of(one)) for one in error.errors()]
    if problems:
        raise ProfileError("\n".join(_said(path, tree, place, what) for place, what in problems))
    return LoadedProfile(profile, path, tree)


def field_name(location: Location) -> str:
    """``lists[1].column``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _said(path: Path, tree: yaml.Node, location: Location, sentence: str) -> str:
    where = f"{path}, line {line_of(tree, location)}"
    return f"{where}, {field_name(location)}: {sentence}" if location else f"{where}: {sentence}"


def _twice(node: yaml.Node, location: Location) -> Iterator[tuple[Location, str]]:
    """Keys that a mapping has twice: YAML readers take the last one and say nothing."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _twice(item, (*location, number))
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            place = (*location, str(key.value))
            if key.value in seen:
                yield place, "it is said twice"
            seen.add(str(key.value))
            yield from _twice(value, place)
