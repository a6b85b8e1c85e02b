"""Counting duplicates in eight bytes an address."""

from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.contacts.seen import SeenHashes

HASHES = st.binary(min_size=16, max_size=16)


@given(
    st.lists(
        st.lists(st.sampled_from([bytes([n]) * 16 for n in range(40)]) | HASHES, unique=True, max_size=20), max_size=12
    )
)
def test_it_is_a_set(batches: list[list[bytes]]) -> None:
    seen, plain = SeenHashes(), set[bytes]()
    for batch in batches:
        assert seen.add(batch) == [h in plain for h in batch]
        plain.update(batch)
        assert len(seen) == len(plain)
