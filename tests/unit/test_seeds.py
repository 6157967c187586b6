from hypothesis import given
from hypothesis import strategies as st

from rest_core.seeds import derive


@given(st.integers(), st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_a_seed_fits_every_generator_and_stays_the_same(seed: int, use: list[int | str]) -> None:
    assert 0 <= derive(seed, *use) < 2**63
    assert derive(seed, *use) == derive(seed, *use)


def test_every_use_has_a_seed_of_its_own() -> None:
    uses = [
        (seed, what, step, n) for seed in (0, 1) for what in ("rollout", "probe") for step in (1, 11) for n in (1, 11)
    ]
    assert len({derive(*use) for use in uses}) == len(uses)  # type: ignore[arg-type]
    assert derive(0, 1, 11) != derive(0, 11, 1)


def test_seeds_are_the_same_on_every_machine_and_in_every_release() -> None:
    # The first eight bytes of SHA-256 of "0/rollout/1/2", less the lowest bit.
    assert derive(0, "rollout", 1, 2) == 0xE6B7318D2535434A >> 1
