"""Calls between services: a short-lived token made for one callee, and nothing else that claims to be one."""

import base64
import json
import time
from typing import Any
from uuid import uuid4

import jwt
import pytest

from libs.common import service_tokens
from libs.common.errors import Unauthenticated
from libs.common.service_tokens import Verifier
from tests.harness.patience import eventually

SECRET = "a-service-token-secret-of-this-test-0123456789"
USER = {"sub": str(uuid4()), "role": "authenticated"}


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": "gateway",
        "aud": "metering",
        "iat": now,
        "exp": now + 60,
        "jti": str(uuid4()),
        "user": USER,
        **changed,
    }
    return {name: value for name, value in made.items() if value is not None}


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def signed(secret: str = SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    return jwt.encode(claims(**changed), secret, algorithm=algorithm)


def test_a_token_says_who_calls_for_whom_and_dies_within_a_minute() -> None:
    token = service_tokens.mint(SECRET, issuer="gateway", audience="metering", user=USER)
    caller = Verifier(SECRET, audience="metering").verify(token)
    assert (caller.service, str(caller.user_id), caller.role) == ("gateway", USER["sub"], "authenticated")
    said = jwt.decode(token, SECRET, algorithms=["HS256"], audience="metering")
    assert said["exp"] - said["iat"] <= 60
    other = service_tokens.mint(SECRET, issuer="gateway", audience="metering", user=USER)
    assert jwt.decode(other, SECRET, algorithms=["HS256"], audience="metering")["jti"] != said["jti"]


NOW = int(time.time())


@pytest.mark.parametrize(
    "token",
    {
        "wrong secret": signed("another-secret-of-this-test-0123456789-abc"),
        "other callee": signed(aud="agents"),
        "every callee": signed(aud=["metering", "agents", "billing"]),
        "no callee": signed(aud=None),
        "part of the name": signed(aud="meter"),
        "expired": signed(iat=NOW - 120, exp=NOW - 60),
        "no expiry": signed(exp=None),
        "an expiry that is no number": signed(exp="tomorrow"),
        "lives for a day": signed(exp=NOW + 86_400),
        "from the future": signed(iat=NOW + 600, exp=NOW + 660),
        "no iat": signed(iat=None),
        "no jti": signed(jti=None),
        "no issuer": signed(iss=None),
        "a user that is no id": signed(user={"sub": "' OR 1=1--"}),
        "a user that is a list": signed(user=[USER["sub"]]),
        "none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}.",
        "None": f"{part({'alg': 'None', 'typ': 'JWT'})}.{part(claims())}.",
        "other hash": signed(SECRET + SECRET, algorithm="HS512"),
        "crit": jwt.encode(claims(), SECRET, headers={"crit": ["x"], "x": 1}),
        "empty": "",
        "garbage": "a.b.c",
        "too long": "a" * 100_000,
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_what_is_no_such_token_is_refused(token: tuple[str, str]) -> None:
    verifier = Verifier(SECRET, audience="metering")
    for _ in range(2):  # what was refused is not remembered as known
        with pytest.raises(Unauthenticated):
            verifier.verify(token[1])


async def test_a_remembered_token_dies_with_its_expiry() -> None:
    verifier = Verifier(SECRET, audience="metering")
    now = int(time.time())
    token = signed(iat=now - 50, exp=now - service_tokens.LEEWAY_S + 2)
    assert verifier.verify(token) is verifier.verify(token)

    async def is_refused() -> bool:
        try:
            verifier.verify(token)
        except Unauthenticated:
            return True
        return False

    await eventually(is_refused, within_s=10)
    assert time.time() >= now + 2
    verifier.verify(signed())
    assert verifier.count == 1, "an expired token was still remembered"


def test_a_verifier_forgets_the_oldest_of_many_tokens() -> None:
    verifier = Verifier(SECRET, audience="metering", remembered=2)
    first, *others = [signed() for _ in range(3)]
    before = verifier.verify(first)
    for token in others:
        verifier.verify(token)
    assert verifier.verify(first) == before
    assert verifier.verify(first) is not before
