"""Who sends a model to whom: every slow link once."""

from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.steps.sync.fanout import OUTSIDE, Link, Send, Sender, plan


def links(*cables: tuple[int, int], local: bool = False) -> Callable[[Sender, int], Link]:
    pairs = {frozenset(cable) for cable in cables}

    def link(source: Sender, target: int) -> Link:
        if local:
            return "local"
        if source is OUTSIDE:
            return "uplink"
        return "cable" if frozenset((source, target)) in pairs else "network"

    return link


def mesh(n: int) -> Callable[[Sender, int], Link]:
    return links(*((one, other) for one in range(n) for other in range(one)))


def test_a_mesh_gets_one_copy_from_outside_and_all_others_over_the_cables_at_once() -> None:
    assert plan([OUTSIDE], dict.fromkeys(range(4), 100), mesh(4)) == (
        (Send(OUTSIDE, 0, "uplink"),),
        (Send(0, 1, "cable"), Send(0, 2, "cable"), Send(0, 3, "cable")),
    )


def test_a_ring_passes_it_on_in_both_directions() -> None:
    rounds = plan([OUTSIDE], dict.fromkeys(range(4), 100), links((0, 1), (1, 2), (2, 3), (3, 0)))
    assert rounds[1][0] == Send(0, 1, "cable")
    assert Send(0, 3, "cable") in rounds[1]
    assert all(send.link == "cable" for send in rounds[1] if send.target != 2)


@pytest.mark.parametrize(("targets", "rounds"), [(1, 1), (2, 2), (4, 3), (8, 4)])
def test_without_cables_the_number_of_senders_doubles(targets: int, rounds: int) -> None:
    made = plan([OUTSIDE], dict.fromkeys(range(targets), 100), links())
    assert [len(sends) for sends in made] == [1, 1, 2, 4][:rounds]


def test_the_entry_is_the_node_that_needs_least_then_the_one_with_most_cables() -> None:
    cables = links((1, 0), (1, 2))
    assert plan([OUTSIDE], {0: 100, 1: 100, 2: 100}, cables)[0] == (Send(OUTSIDE, 1, "uplink"),)
    assert plan([OUTSIDE], {0: 100, 1: 100, 2: 7}, cables)[0] == (Send(OUTSIDE, 2, "uplink"),)


def test_a_node_that_has_it_spares_the_uplink() -> None:
    made = plan([OUTSIDE, 2], {0: 100, 1: 100}, links())
    assert all(send.source is not OUTSIDE for send in chain.from_iterable(made))


def test_several_holders_share_the_work() -> None:
    made = plan([0, 1], {2: 100, 3: 100}, mesh(4))
    assert {send.source for send in made[0]} == {0, 1}


def test_within_one_machine_all_copies_are_made_at_once() -> None:
    assert [len(sends) for sends in plan([OUTSIDE], dict.fromkeys(range(4), 1), links(local=True))] == [4]


def test_nothing_to_send_is_no_round() -> None:
    assert plan([0], {}, mesh(2)) == ()


@given(st.data())
def test_every_node_gets_it_once_from_one_who_has_it_and_the_uplink_is_used_at_most_once(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(1, 8))
    pairs = [(one, other) for one in range(n) for other in range(one)]
    cables = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    have: set[Sender] = set(data.draw(st.sets(st.sampled_from([OUTSIDE, *range(n)]), min_size=1)))
    needed = {node: data.draw(st.integers(0, 9)) for node in range(n) if node not in have}
    if not have - {OUTSIDE} and OUTSIDE not in have:
        return
    made = plan(sorted(have, key=str), needed, links(*cables))
    uplinks = [send for send in chain.from_iterable(made) if send.link == "uplink"]
    assert len(uplinks) == (1 if needed and have == {OUTSIDE} else 0)
    assert sorted(send.target for send in chain.from_iterable(made)) == sorted(needed)
    for sends in made:
        assert all(send.source in have for send in sends)
        network = [send.source for send in sends if send.link == "network"]
        assert len(set(network)) == len(network)
        have |= {send.target for send in sends}
