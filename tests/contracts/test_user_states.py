"""The contract of UserStates, run on every adapter."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from service.adapters.redis_store import RedisUserStates
from service.config import StoreConfig
from service.errors import StoreUnavailable
from service.messages import Impression, Interaction, UserProfile
from service.ports import UserState
from tests.contracts.adapters import Adapters

CONFIG = StoreConfig(recent_limit=4, consumed_limit=3)
PROFILE = UserProfile(birth_date="1990-01-31", country="DE", attributes={"langs": ["de", "en"], "paying": True})
NOBODY = UserState(profile=UserProfile(), recent=[], consumed=frozenset())


def _interaction(n: int, *, reward: float | None = 1.0, item_id: str | None = None) -> Interaction:
    return Interaction(
        item_id=item_id or f"i{n}", event_type="click", reward=reward, at_unix_ms=1_000 * n, client_id=f"c{n}"
    )


def _shown(n: int, *, item_id: str | None = None, event_id: str | None = None) -> Impression:
    return Impression(item_id=item_id or f"i{n}", event_id=event_id or f"e{n}", shown_at_unix_ms=1_000 * n)


async def test_an_unknown_user_is_nobody(adapters: Adapters) -> None:
    assert await adapters.user_states(CONFIG).fetch("stranger") == NOBODY


async def test_interactions_come_back_oldest_first(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    await users.add_interactions({"u": [_interaction(3), _interaction(1)]})
    await users.add_interactions({"u": [_interaction(2)]})
    assert list((await users.fetch("u")).recent) == [_interaction(1), _interaction(2), _interaction(3)]


async def test_adding_again_changes_nothing(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    batch = [_interaction(1), _interaction(2, reward=None), _interaction(3, reward=-1.0)]
    await users.add_interactions({"u": batch})
    before = await users.fetch("u")
    await users.add_interactions({"u": batch})
    await users.add_interactions({"u": batch[:1]})
    assert await users.fetch("u") == before
    assert len(before.recent) == 3


async def test_only_the_newest_interactions_are_kept(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    await users.add_interactions({"u": [_interaction(n, reward=None) for n in range(1, 10)]})
    assert [i.item_id for i in (await users.fetch("u")).recent] == ["i6", "i7", "i8", "i9"]
    await users.add_interactions({"u": [_interaction(2, reward=None)]})
    assert [i.item_id for i in (await users.fetch("u")).recent] == ["i6", "i7", "i8", "i9"]


async def test_interactions_of_one_millisecond_keep_one_order(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    same = [_interaction(5, item_id=item_id) for item_id in ("b", "a", "c")]
    await users.add_interactions({"u": same})
    assert [i.item_id for i in (await users.fetch("u")).recent] == ["a", "b", "c"]


async def test_what_was_rewarded_counts_as_consumed(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    await users.add_interactions(
        {"u": [_interaction(1, reward=0.5), _interaction(2, reward=0.0), _interaction(3, reward=None)]}
    )
    await users.add_interactions({"u": [_interaction(4, reward=-1.0)]})
    assert (await users.fetch("u")).consumed == {"i1"}


async def test_consumed_items_outlive_recent_ones_up_to_their_own_limit(adapters: Adapters) -> None:
    users = adapters.user_states(StoreConfig(recent_limit=1, consumed_limit=3))
    await users.add_interactions({"u": [_interaction(n) for n in range(1, 6)]})
    state = await users.fetch("u")
    assert [i.item_id for i in state.recent] == ["i5"]
    assert state.consumed == {"i3", "i4", "i5"}


async def test_recent_and_consumed_expire_by_themselves_and_the_profile_stays(adapters: Adapters) -> None:
    users = adapters.user_states(StoreConfig(user_state_ttl_s=1, consumed_ttl_s=600))
    await users.put_profiles({"u": PROFILE})
    await users.add_interactions({"u": [_interaction(1)]})
    await adapters.pass_ms(1_300)
    assert await users.fetch("u") == UserState(profile=PROFILE, recent=[], consumed=frozenset({"i1"}))


async def test_consumed_items_are_forgotten_in_the_end(adapters: Adapters) -> None:
    users = adapters.user_states(StoreConfig(user_state_ttl_s=600, consumed_ttl_s=1))
    await users.add_interactions({"u": [_interaction(1)]})
    await adapters.pass_ms(1_300)
    state = await users.fetch("u")
    assert len(state.recent) == 1
    assert state.consumed == frozenset()


async def test_profiles_are_replaced_whole(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    await users.put_profiles({"a": PROFILE, "b": UserProfile(country="FR")})
    await users.put_profiles({"a": UserProfile(birth_date="2000-01-01")})
    assert (await users.fetch("a")).profile == UserProfile(birth_date="2000-01-01")
    assert (await users.fetch("b")).profile == UserProfile(country="FR")


async def test_erase_leaves_nothing_and_touches_nobody_else(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    for user_id in ("u", "other"):
        await users.put_profiles({user_id: PROFILE})
        await users.add_interactions({user_id: [_interaction(1)]})
        await users.add_impressions({user_id: [_shown(1)]})
    other = await users.fetch("other")
    await users.erase("u", at_unix_ms=_interaction(1).at_unix_ms)
    await users.erase("never there", at_unix_ms=1)
    assert await users.fetch("u") == NOBODY
    assert await users.fetch("other") == other != NOBODY


async def test_what_happened_before_an_erasure_is_not_added_again(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    await users.add_interactions({"u": [_interaction(5)]})
    await users.erase("u", at_unix_ms=_interaction(5).at_unix_ms)
    # A learner that is behind repairs the state of everybody it reads of.
    await users.add_interactions({"u": [_interaction(4), _interaction(5), _interaction(6)]})
    await users.add_impressions({"u": [_shown(5), _shown(6)], "other": [_shown(5)]})
    state = await users.fetch("u")
    assert list(state.recent) == [_interaction(6)]
    assert state.consumed == {_interaction(6).item_id}
    assert state.impressions == (_shown(6),)
    assert (await users.fetch("other")).impressions == (_shown(5),)


async def test_impressions_come_back_oldest_first_and_once(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    slate = [_shown(3, item_id="b", event_id="e3"), _shown(3, item_id="a", event_id="e3")]
    await users.add_impressions({"u": [*slate, _shown(1)], "other": [_shown(9)], "nobody": []})
    await users.add_impressions({"u": slate})
    assert (await users.fetch("u")).impressions == (_shown(1), slate[1], slate[0])
    assert (await users.fetch("other")).impressions == (_shown(9),)
    assert await users.fetch("nobody") == NOBODY


async def test_only_the_newest_impressions_are_kept_however_late_old_ones_come(adapters: Adapters) -> None:
    users = adapters.user_states(StoreConfig(impressions_limit=3))
    await users.add_impressions({"u": [_shown(n) for n in range(1, 8)]})
    await users.add_impressions({"u": [_shown(2)]})
    assert (await users.fetch("u")).impressions == (_shown(5), _shown(6), _shown(7))


async def test_an_item_shown_by_two_decisions_is_two_impressions(adapters: Adapters) -> None:
    users = adapters.user_states(CONFIG)
    twice = [_shown(1, item_id="a", event_id="e1"), _shown(1, item_id="a", event_id="e2 | \0 ü")]
    await users.add_impressions({"u": twice})
    assert (await users.fetch("u")).impressions == tuple(twice)


async def test_impressions_expire_by_themselves(adapters: Adapters) -> None:
    users = adapters.user_states(StoreConfig(impressions_ttl_s=1, user_state_ttl_s=600))
    await users.add_impressions({"u": [_shown(1)]})
    await users.add_interactions({"u": [_interaction(1)]})
    await adapters.pass_ms(1_300)
    state = await users.fetch("u")
    assert (len(state.recent), state.impressions) == (1, ())


@pytest.mark.parametrize("user_id", ["}", "{u:x}", "a}:recent", "a b\n", "ünïcödé 用户 🎬", "*", "x" * 1_000])
async def test_any_text_is_a_user_of_its_own(adapters: Adapters, user_id: str) -> None:
    users = adapters.user_states(CONFIG)
    await users.put_profiles({"a": UserProfile(country="XX"), user_id: PROFILE})
    await users.add_interactions({user_id: [_interaction(1, item_id=user_id)]})
    state = await users.fetch(user_id)
    assert state.profile == PROFILE
    assert state.consumed == {user_id}
    assert (await users.fetch("a")) == UserState(profile=UserProfile(country="XX"), recent=[], consumed=frozenset())


async def test_every_call_to_a_store_that_is_away_raises_store_unavailable(nowhere: Redis) -> None:
    users = RedisUserStates(nowhere, CONFIG)
    calls = [
        lambda: users.fetch("u"),
        lambda: users.add_interactions({"u": [_interaction(1)]}),
        lambda: users.add_impressions({"u": [_shown(1)]}),
        lambda: users.put_profiles({"u": PROFILE}),
        lambda: users.erase("u", at_unix_ms=1),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call()
