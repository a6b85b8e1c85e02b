"""What an import says at its end."""

from typing import TYPE_CHECKING

from rich.table import Table

from mailer_lib.commands.context import console

if TYPE_CHECKING:
    from mailer_lib.contacts.importer import ImportReport, ListReport


def print_report(done: "ImportReport", *, dry_run: bool) -> None:
    output = console()
    if dry_run:
        output.print("dry run: nothing was written; this is what the import would do")
    if done.resumed_after:
        output.print(f"went on after row {done.resumed_after:,}, where an earlier run was interrupted")
    table = _table()
    for count, what in (
        (done.rows, "rows"),
        (done.new, "new contacts"),
        (done.updated, "updated"),
        (done.unchanged, "unchanged"),
        (done.duplicates, "came twice in the file; the last one counts"),
        (done.rejected, "rejected"),
        (done.outside, "join none of the lists; nothing is stored of them"),
    ):
        if count or what == "rows":
            table.add_row(f"{count:,}", what)
    several = len(done.lists) > 1
    for one in done.lists:
        if several:
            output.print(table)
            table = _table()
            output.print(f"list {one.name}:", markup=False)
        _add_list(table, one, "this list" if not several else one.name)
    output.print(table)
    undated = [one for one in done.lists if one.undated and not one.requested]
    for one in undated:
        where = f" to {one.name}" if several else ""
        output.print(
            f"{one.undated:,} have no date of consent{where}, which can't be newer than any refusal "
            "(--consent-at; consent.at in a profile)"
        )
    if done.ignored_columns:
        output.print(f"columns not imported: {', '.join(done.ignored_columns)}", markup=False)
    if done.rejects is not None:
        output.print(f"rejected rows, with line, column and reason: {done.rejects}", markup=False, soft_wrap=True)
    for reject in done.first_rejects if dry_run else ():
        where = f"line {reject.line}" + (f", {reject.column}" if reject.column else "")
        output.print(f"{where}: {reject.reason}", markup=False)
    if done.without_load_data:
        output.print("the database server takes no files (local_infile = 0): with it, imports are cheaper")


def _add_list(table: Table, one: "ListReport", name: str) -> None:
    rows = [(one.confirmed, f"confirmed for {name}"), (one.pending, "wait for confirmation")]
    rows += [(count, f"stay out: {reason}") for reason, count in sorted(one.kept_out.items())]
    for count, what in rows:
        if count:
            table.add_row(f"{count:,}", what)


def _table() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    return table
