from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rest_core.data.similarity import SimilarityIndex, count_shingles, jaccard, normalised, shingles


def test_normalised_text_is_words_alone():
    assert normalised("  Hé said:\n“ＯＫ, 3.5%”!") == "hé said ok 3 5"


def test_shingles_are_runs_of_three_words():
    assert shingles("a b c d") == {"a b c", "b c d"}
    assert shingles("Hi there") == {"hi there"}
    assert shingles("?!") == frozenset()


def test_jaccard_by_hand():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 2 / 4
    assert jaccard(frozenset(), frozenset()) == 1.0
    assert jaccard(frozenset("a"), frozenset()) == 0.0


sets = st.lists(st.frozensets(st.sampled_from("abcdefghijkl"), max_size=12), max_size=20)


@given(sets, st.frozensets(st.sampled_from("abcdefghijkl")), st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
def test_index_finds_what_comparing_every_pair_finds(
    members: list[frozenset[str]], wanted: frozenset[str], threshold: float
):
    index: SimilarityIndex[int] = SimilarityIndex(threshold, count_shingles(members))
    for key, member in enumerate(members):
        index.add(key, member)
    expected = {key for key, member in enumerate(members) if member and wanted and jaccard(member, wanted) >= threshold}
    assert sorted(index.matches(wanted)) == sorted(expected)
