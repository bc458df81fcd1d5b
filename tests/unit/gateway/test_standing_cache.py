"""What is kept of users' standings: whom it is read again for, and what must not come back."""

import pytest

from libs.common.ids import new_id
from services.gateway import sessions
from services.gateway.domain import Standing
from services.gateway.sessions import KEPT_WARM_S, RENEW_EVERY_S, StandingCache

FREE = Standing(tier="free", is_admin=False, is_banned=False)
PRO = Standing(tier="pro", is_admin=False, is_banned=False)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_what_was_forgotten_while_it_was_read_again_does_not_come_back() -> None:
    cache, user_id = StandingCache(), new_id()
    cache.put(user_id, FREE)
    read = cache.warm()[user_id]
    cache.forget(user_id)
    cache.renew(user_id, read, FREE)
    assert cache.get(user_id) is None
    cache.put(user_id, PRO)
    cache.renew(user_id, read, FREE)
    assert (known := cache.get(user_id)) is not None
    assert known.standing == PRO


def test_those_who_asked_last_are_read_again_and_no_more_than_is_bearable() -> None:
    clock = Clock()
    cache = StandingCache(clock=clock)
    user_ids = [new_id() for _ in range(sessions.MOST_KEPT_WARM + 10)]
    for user_id in user_ids:
        clock.now += 1e-4
        cache.put(user_id, FREE)
    clock.now += 1e-4
    assert cache.get(user_ids[0]) is not None
    assert set(cache.warm()) == {user_ids[0], *user_ids[11:]}


@pytest.mark.parametrize("standing", [FREE, None])
def test_who_does_not_ask_is_forgotten_and_who_has_no_account_at_once(standing: Standing | None) -> None:
    clock, user_id, rounds = Clock(), new_id(), 0
    cache = StandingCache(clock=clock)
    cache.put(user_id, standing)
    while user_id in (warm := cache.warm()):
        clock.now += RENEW_EVERY_S
        cache.renew(user_id, warm[user_id], standing)
        rounds += 1
    assert rounds == (0 if standing is None else KEPT_WARM_S / RENEW_EVERY_S)
