"""A template as islands in a static sea: what never changes is encoded once, a recipient costs only the rest.

The template is parsed once. Each top-level run of static text becomes a ``Static``; what lies between two of them (one
expression, or a whole ``{% if %}``, ``{% for %}``, ``{% set %}``, however large) is one ``Island``. In the tree that is
compiled, static runs are replaced by a NUL, so that one pass of the template gives all islands, in order, by splitting.
NUL can't come from data (``builder`` strips it), and a NUL made by the template itself is found by counting.

Most islands cost less than that. What depends only on the send (``campaign``, ``list_title``, ``postal_address``) is
folded into the static text here; a bare ``{{ unsubscribe_url }}`` or ``{{ link(3) }}`` becomes a ``TokenSlot``, filled
without Jinja2; and what is a function of a few fields of the contact becomes a ``PureIsland``. Those of the same fields
are rendered in one go, and their values kept (``memo``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from jinja2 import Template, nodes
from jinja2.meta import find_undeclared_variables
from markupsafe import escape

from mailer_lib.message.fields import contact_fields
from mailer_lib.message.language import TemplateLanguage

SEPARATOR = "\0"
_URL_NAMES = frozenset({"unsubscribe_url", "open_pixel_url", "view_url", "link"})
_BY_LOCALE = frozenset({"number", "date"})  # filters that look at the contact's locale
_ALWAYS_NEW = frozenset({"address"})  # fields that no two recipients share: keeping their values is no use
_STATEMENTS_WITH_EFFECT = (
    nodes.Assign, nodes.AssignBlock, nodes.Macro, nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends,
    nodes.Block, nodes.Scope, nodes.ScopedEvalContextModifier, nodes.ExprStmt,
)  # fmt: skip


class TemplateProblemError(ValueError):
    """A template can't be used; the sentence names the line."""


@dataclass(frozen=True, slots=True)
class Static:
    text: str


@dataclass(frozen=True, slots=True)
class TokenSlot:
    """A signed token between static texts: ``unsubscribe_url``, ``open_pixel_url``, ``view_url``, ``link`` number."""

    name: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Island:
    index: int  # into the values that ``Islands.render`` returns


@dataclass(frozen=True, slots=True)
class PureIsland:
    """Depends on these fields of the contact, and on nothing else that differs between recipients."""

    fields: tuple[str, ...]
    index: int  # into the values that ``Islands.pure[fields]`` returns


Segment: TypeAlias = Static | TokenSlot | Island | PureIsland
Render: TypeAlias = Callable[[dict[str, Any]], list[str]]  # variables (globals of the language included) → values


@dataclass(frozen=True)
class Islands:
    segments: tuple[Segment, ...]
    render: Render  # of the islands
    pure: Mapping[tuple[str, ...], Render]  # of the pure islands, by their fields
    bare: frozenset[tuple[str, ...]]  # those that are nothing but ``{{ contact.x }}``, once or several times
    variables: frozenset[str]  # what ``render`` looks up

    def text(self, variables: dict[str, Any]) -> str:
        """The whole as text, for a template that was compiled without token slots."""
        values = self.render(variables)
        pure = {fields: render(variables) for fields, render in self.pure.items()}
        out = []
        for segment in self.segments:
            if isinstance(segment, Static):
                out.append(segment.text)
            elif isinstance(segment, Island):
                out.append(values[segment.index])
            elif isinstance(segment, PureIsland):
                out.append(pure[segment.fields][segment.index])
        return "".join(out)


@dataclass(frozen=True)
class UrlForm:
    """Where a token stands in its URL: ``before + token + after``."""

    before: str
    after: str = ""


def compile_islands(
    language: TemplateLanguage,
    source: str,
    constants: Mapping[str, Any],
    urls: Mapping[str, UrlForm],
) -> Islands:
    """Take ``source`` apart. ``constants`` are the variables that are the same for every recipient of the send; with
    empty ``urls`` there are no token slots.

    Raises:
        jinja2.TemplateSyntaxError: with the line.
        TemplateProblemError: a NUL in the source.
    """
    if SEPARATOR in source:
        raise TemplateProblemError("the template holds a NUL character; remove it")
    tree = language.parse(source)
    stored = _stored_names(tree)
    steady = _Steady(language, constants, stored)
    direct = bool(urls) and not (stored & _URL_NAMES)

    segments: list[Segment] = []
    body: list[nodes.Node] = []
    open_island: list[nodes.Node] = []
    pure: dict[tuple[str, ...], list[list[nodes.Node]]] = {}
    count = 0

    def close() -> None:
        nonlocal count
        if open_island and (fields := steady.fields(open_island)):
            parts = pure.setdefault(fields, [])
            segments.append(PureIsland(fields, len(parts)))
            parts.append(list(open_island))
            open_island.clear()
        elif open_island:
            if count:
                body.append(nodes.Output([nodes.TemplateData(SEPARATOR)]))
            body.extend(open_island)
            open_island.clear()
            segments.append(Island(count))
            count += 1

    def add_static(text: str) -> None:
        if not text:
            return
        close()
        if segments and isinstance(last := segments[-1], Static):
            segments[-1] = Static(last.text + text)
        else:
            segments.append(Static(text))

    for node in _pieces(tree):
        if (data := _data(node)) is not None:
            add_static(data)
        elif (folded := steady.text(node)) is not None:
            add_static(folded)
        elif direct and (slot := _token_slot(node)) is not None:
            form = urls[slot.name]
            quote = escape if language.autoescape else str
            add_static(str(quote(form.before)))
            segments.append(slot)
            add_static(str(quote(form.after)))
        else:
            open_island.append(node)
    close()

    tree.body = body
    tree.set_environment(language)
    used = frozenset(looked_up(tree, language)) if count else frozenset()
    renders = {fields: _joined(language, parts) for fields, parts in pure.items()}
    bare = frozenset(fields for fields, parts in pure.items() if all(_is_bare(part) for part in parts))
    return Islands(tuple(segments), _renderer(language, tree, count), renders, bare, used)


def _pieces(tree: nodes.Template) -> list[nodes.Node]:
    """The top level, with each ``Output`` split into its parts; a child of another template stays whole."""
    if any(isinstance(node, nodes.Extends) for node in tree.body):
        return list(tree.body)
    pieces: list[nodes.Node] = []
    for node in tree.body:
        if isinstance(node, nodes.Output):
            pieces += [nodes.Output([part], lineno=part.lineno) for part in node.nodes]
        else:
            pieces.append(node)
    return pieces


def _data(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Output) and isinstance(part := node.nodes[0], nodes.TemplateData):
        return str(part.data)
    return None


def _token_slot(node: nodes.Node) -> TokenSlot | None:
    if not isinstance(node, nodes.Output):
        return None
    expression = node.nodes[0]
    if isinstance(expression, nodes.Name) and expression.name in _URL_NAMES - {"link"}:
        return TokenSlot(expression.name)
    if (
        isinstance(expression, nodes.Call)
        and isinstance(expression.node, nodes.Name)
        and expression.node.name == "link"
        and len(expression.args) == 1
        and not expression.kwargs
        and isinstance(expression.args[0], nodes.Const)
        and type(expression.args[0].value) is int
    ):
        return TokenSlot("link", expression.args[0].value)
    return None


def _is_bare(island: list[nodes.Node]) -> bool:
    """``{{ contact.x }}`` and nothing else."""
    if len(island) != 1 or not isinstance(island[0], nodes.Output):
        return False
    field = island[0].nodes[0]
    return isinstance(field, nodes.Getattr) and isinstance(field.node, nodes.Name) and field.node.name == "contact"


def looked_up(tree: nodes.Template, language: TemplateLanguage) -> set[str]:
    """``find_undeclared_variables``, which makes code of the tree and forgets it: 0.3 ms for each of some 200 pieces of
    a newsletter. Where there are only outputs of expressions nothing can be declared, so all names are looked up."""
    if any(not isinstance(node, nodes.Output) for node in tree.body):
        return find_undeclared_variables(tree)
    return {name.name for name in tree.find_all(nodes.Name)} - language.globals.keys()


def _stored_names(tree: nodes.Template) -> frozenset[str]:
    """Every name that the template gives a meaning of its own anywhere."""
    names = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    names |= {macro.name for macro in tree.find_all(nodes.Macro)}
    names |= {imported.target for imported in tree.find_all(nodes.Import)}
    for imported in tree.find_all(nodes.FromImport):
        names |= {name if isinstance(name, str) else name[1] for name in imported.names}
    return frozenset(names)


class _Steady:
    """Evaluates, once, what depends on nothing but the send."""

    def __init__(self, language: TemplateLanguage, constants: Mapping[str, Any], stored: frozenset[str]) -> None:
        self.language = language
        self.constants = {name: value for name, value in constants.items() if name not in stored}
        self._changed = stored & language.globals.keys()
        self._contact_changes = "contact" in stored

    def fields(self, island: list[nodes.Node]) -> tuple[str, ...]:
        """The contact's fields that an island is a function of; empty when it is one of something else too."""
        whole = nodes.Template(island, lineno=1)
        whole.set_environment(self.language)
        if self._has_effect(whole) or looked_up(whole, self.language) - self.constants.keys() != {"contact"}:
            return ()
        if self._contact_changes or any(part.attr == "attributes" for part in whole.find_all(nodes.Getattr)):
            return ()  # contact.attributes.x need not be contact.x
        if any(part.value == "attributes" for part in whole.find_all(nodes.Const)):
            return ()
        names = set(contact_fields(whole))
        filters = {part.name for part in whole.find_all(nodes.Filter)}
        if None in names or (names & _ALWAYS_NEW and not _is_bare(island)) or "random" in filters:
            return ()
        if filters & _BY_LOCALE:
            names.add("locale")
        return tuple(sorted(name for name in names if name is not None))

    def _has_effect(self, whole: nodes.Template) -> bool:
        if any(True for _ in whole.find_all(_STATEMENTS_WITH_EFFECT)):
            return True
        return bool(self._changed) and any(name.name in self._changed for name in whole.find_all(nodes.Name))

    def text(self, node: nodes.Node) -> str | None:
        """The text of what is the same for every recipient, else None."""
        whole = nodes.Template([node], lineno=1)
        whole.set_environment(self.language)
        if self._has_effect(whole) or {part.name for part in whole.find_all(nodes.Filter)} & {"random", *_BY_LOCALE}:
            return None
        if not looked_up(whole, self.language) <= self.constants.keys():
            return None
        try:
            template = Template.from_code(self.language, self.language.compile(whole), dict(self.language.globals))
            text = template.render(self.constants)
        except Exception:  # whatever it is: it is raised again for a recipient, where it is reported
            return None
        return None if SEPARATOR in text else text


def _joined(language: TemplateLanguage, parts: list[list[nodes.Node]]) -> Render:
    """Pure islands as one template: none of them leaves anything behind that another one could see."""
    body = list(parts[0])
    for part in parts[1:]:
        body += [nodes.Output([nodes.TemplateData(SEPARATOR)]), *part]
    whole = nodes.Template(body, lineno=1)
    whole.set_environment(language)
    return _renderer(language, whole, len(parts))


def _renderer(language: TemplateLanguage, tree: nodes.Template, count: int) -> Render:
    if not count:
        return lambda variables: []
    template = Template.from_code(language, language.compile(tree), {})
    root, new_context = template.root_render_func, template.new_context

    def render(variables: dict[str, Any]) -> list[str]:
        values = "".join(root(new_context(variables, shared=True))).split(SEPARATOR)
        if len(values) != count:
            raise TemplateProblemError("the template made a NUL character")
        return values

    return render
