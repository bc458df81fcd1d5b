"""What the gateway's readiness says besides what all services share: Redis, mail, failed sign-ins."""

from typing import Final

from libs.common import redis
from libs.common.database import Database
from libs.common.health import Check, Finding, at_most
from libs.common.traffic import Traffic
from services.gateway.mail import queries as mail

MAX_MAIL_AGE_S: Final = 600
MAX_AUTH_FAILURES_PERCENT: Final = 10
_ATTEMPTS: Final = frozenset({"/auth/v1/token", "/auth/v1/verify"})


def check_redis(client: redis.Redis) -> Check:
    async def probe() -> Finding:
        await client.ping()  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped
        return Finding(status="ok")

    return Check(name="redis", probe=probe, runbook="redis")


def check_mail(database: Database, *, is_sent: bool) -> Check:
    async def probe() -> Finding:
        if not is_sent:
            return Finding(status="disabled", value="no SMTP_URL is set")
        async with database.transaction() as conn:
            return at_most(await mail.oldest_unsent_age_s(conn), MAX_MAIL_AGE_S)

    return Check(name="mail_oldest_unsent_s", probe=probe, runbook="mail")


def check_auth_failures(traffic: Traffic) -> Check:
    """Wrong passwords, dead refresh tokens, unknown codes among all attempts; one refused for haste is none."""

    async def probe() -> Finding:
        return traffic.share_percent(
            of=lambda _, status: 400 <= status < 500,  # noqa: PLR2004
            among=lambda route, status: route in _ATTEMPTS and status != 429,  # noqa: PLR2004
            at_most_percent=MAX_AUTH_FAILURES_PERCENT,
        )

    return Check(name="auth_failures_percent", probe=probe, runbook="users-cant-sign-in", warns_only=True)
