"""Which merge fields a campaign uses: read from the syntax tree, so a field in a comment or a text isn't one."""

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import nodes

from mailer_lib.message.campaign import Campaign
from mailer_lib.message.language import TemplateLanguage

CONTACT_COLUMNS = frozenset({"address", "given_name", "family_name", "locale", "timezone"})


@dataclass(frozen=True)
class MergeFields:
    attributes: frozenset[str]  # keys of declared attributes, or of nothing that there is
    columns: frozenset[str]  # of CONTACT_COLUMNS
    computed: bool = False  # a field's name is computed, so nobody can say which ones are used


def used_fields(campaign: Campaign) -> list[str]:
    """Keys of the attributes that the campaign's templates use, sorted: the shards' ``attribute.…`` columns."""
    return sorted(merge_fields(campaign).attributes)


def merge_fields(campaign: Campaign) -> MergeFields:
    """Over subject, preheader, template and text part of every variant.

    Raises:
        jinja2.TemplateSyntaxError: a template is malformed.
    """
    language = TemplateLanguage(autoescape=True)
    names: set[str] = set()
    computed = False
    for source in sources(campaign):
        for name in _names(language.parse(source)):
            if name is None:
                computed = True
            else:
                names.add(name)
    return MergeFields(frozenset(names - CONTACT_COLUMNS), frozenset(names & CONTACT_COLUMNS), computed)


def sources(campaign: Campaign) -> list[str]:
    """Every Jinja2 source of a campaign."""
    found = [campaign.subject, campaign.preheader]
    for variant in campaign.variants:
        found += [variant.subject or "", variant.preheader or ""]
    for template in campaign.template_sources():
        found += [template.source, template.text or ""]
    return found


def _names(tree: nodes.Node) -> Iterator[str | None]:
    """Fields of ``contact``; None for one whose name is computed, or for ``contact`` as a whole."""
    for node in tree.iter_child_nodes():
        if _is_holder(node):
            yield None
            continue
        found, name = _field(node)
        if found:
            yield name
            if isinstance(node, nodes.Getitem):
                yield from _names(node.arg)
            continue
        yield from _names(node)


def _field(node: nodes.Node) -> tuple[bool, str | None]:
    """(whether this is a field of the contact, its name)."""
    if isinstance(node, nodes.Getattr) and _is_holder(node.node):
        return True, str(node.attr)
    if isinstance(node, nodes.Getitem) and _is_holder(node.node):
        constant = isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
        return True, node.arg.value if constant and isinstance(node.arg, nodes.Const) else None
    return False, None


def _is_holder(node: nodes.Node) -> bool:
    """``contact``, ``contact.attributes`` or ``contact["attributes"]``."""
    if isinstance(node, nodes.Name):
        return bool(node.name == "contact" and node.ctx == "load")
    if isinstance(node, nodes.Getattr):
        return bool(node.attr == "attributes" and isinstance(node.node, nodes.Name) and node.node.name == "contact")
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        is_contact = isinstance(node.node, nodes.Name) and node.node.name == "contact"
        return bool(node.arg.value == "attributes" and is_contact)
    return False
