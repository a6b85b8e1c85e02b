"""An import that weighs everybody one by one and takes no short way: the reference of the quick one."""

from collections import Counter
from pathlib import Path
from typing import Any

from mailer_lib.contacts.attributes import declared
from mailer_lib.contacts.batch import store
from mailer_lib.contacts.columns import map_columns
from mailer_lib.contacts.csv_source import open_csv
from mailer_lib.contacts.drafts import Before, Drafts, Portion
from mailer_lib.contacts.importer import ImportReport, ListReport
from mailer_lib.contacts.plain_rows import PlainReader
from mailer_lib.contacts.records import BadRecord, each
from mailer_lib.contacts.rows import ConsentDefaults, RowParser, RowProblemError
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.database.engine import now, read, write
from mailer_lib.terms import SubscriptionState
from tests.contacts.world import World


def import_exactly(world: World, path: Path, *, consent: SubscriptionState, batch_rows: int) -> ImportReport:
    started, address_hash = now(), world.settings.identity().address_hash
    scope = ImportScope(world.list_id, consent is SubscriptionState.PENDING, started)
    counts: Counter[str] = Counter()
    kept_out: Counter[Any] = Counter()
    of_list: Counter[str] = Counter()
    seen: set[bytes] = set()
    with read(world.engine) as connection:
        types = declared(connection)
    with open_csv(path) as source:
        columns = map_columns(str(path), source.header, types, {}, {})
        parser = RowParser(columns, types, ConsentDefaults(None, path.name, None), started)
        nobody = PlainReader(parser, address_hash).read([])
        records = list(each(source.one_by_one()))
    for start in range(0, len(records), batch_rows):
        drafts, rows = Drafts(), 0
        for record in records[start : start + batch_rows]:
            counts["rows"] += 1
            try:
                assert not isinstance(record, BadRecord)
                row = parser.parse(record.cells)
            except RowProblemError:
                counts["rejected"] += 1
                continue
            rows += 1
            drafts.add(address_hash(row.address.normalised), row)
        with write(world.engine) as connection:
            portion = Portion(rows, nobody, drafts, lambda _: parser.parse([]))
            done = store(connection, [scope], portion, Before(seen, [seen]))
        counts["duplicates"] += rows - len(drafts.keys() - seen)
        seen.update(drafts)
        for name in ("new", "updated", "unchanged", "erased"):
            counts[name] += getattr(done, name)
        (one,) = done.lists
        of_list.update(confirmed=one.confirmed, pending=one.pending, undated=one.undated)
        kept_out.update(one.kept_out)
    return ImportReport(**counts, lists=(ListReport("newsletter", **of_list, kept_out=dict(kept_out)),))
