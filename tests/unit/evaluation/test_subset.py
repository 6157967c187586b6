from rest_core.evaluation.subset import seeded_subset

ITEMS = list(range(1000))


def test_a_subset_keeps_the_order_and_depends_on_seed_and_name():
    chosen = seeded_subset(ITEMS, 20, seed=1, name="a")
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 20
    assert chosen == seeded_subset(ITEMS, 20, seed=1, name="a")
    assert chosen != seeded_subset(ITEMS, 20, seed=2, name="a")
    assert chosen != seeded_subset(ITEMS, 20, seed=1, name="b")


def test_the_choice_does_not_change_from_run_to_run():
    assert seeded_subset(ITEMS, 5, seed=0, name="simple_python") == [285, 444, 472, 917, 998]


def test_no_limit_and_a_large_limit_take_everything():
    assert seeded_subset(ITEMS, None, seed=0, name="a") == ITEMS
    assert seeded_subset(ITEMS, 5000, seed=0, name="a") == ITEMS
