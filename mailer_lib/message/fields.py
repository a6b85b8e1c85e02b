"""Which fields of ``contact`` a piece of a template reads."""

from collections.abc import Iterator

from jinja2 import nodes


def contact_fields(tree: nodes.Node) -> Iterator[str | None]:
    """Fields of ``contact`` below ``tree``; None for one whose name is computed, or for ``contact`` as a whole."""
    for node in tree.iter_child_nodes():
        if _is_holder(node):
            yield None
            continue
        found, name = _field(node)
        if found:
            yield name
            if isinstance(node, nodes.Getitem):
                yield from contact_fields(node.arg)
            continue
        yield from contact_fields(node)


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
