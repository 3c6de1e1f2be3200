"""The main path in one process, until the suite proper stands."""

from tidings import Cache


async def test_a_hit_after_a_miss_and_a_load_after_an_invalidation():
    loads = []
    async with Cache("memory://") as cache:

        @cache.cached(tags=["user:{user_id}"])
        async def profile(user_id: int) -> int:
            loads.append(user_id)
            return len(loads)

        assert [await profile(7), await profile(7)] == [1, 1]
        await cache.invalidate_tags("user:7")
        assert await profile(7) == 2
