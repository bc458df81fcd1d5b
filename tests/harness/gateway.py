"""Settings of a gateway under test: fresh keys, generous limits."""

import json
import secrets
import time
from typing import Any, Final

import jwt

from services.gateway.auth.tokens import new_signing_key
from services.gateway.settings import Settings
from tests.harness.services import Place

JWT_SECRET: Final = secrets.token_hex(32)


def api_key(role: str) -> str:
    now = int(time.time())
    claims = {"iss": "supabase", "role": role, "iat": now, "exp": now + 3600}
    return jwt.encode(claims, JWT_SECRET, algorithm="HS256")


def gateway_settings(place: Place, **overrides: Any) -> Settings:
    return place.settings_for(
        Settings,
        "gateway",
        **{
            "next_public_supabase_anon_key": api_key("anon"),
            "supabase_service_role_key": api_key("service_role"),
            "supabase_jwt_secret": JWT_SECRET,
            "auth_signing_keys": json.dumps([new_signing_key("test-key")]),
            "auth_autoconfirm": True,
            "rate_limit_max_requests": 100_000,
            "auth_rate_limit_max_requests": 100_000,
            "billing_url": "http://127.0.0.1:9",
            "metering_url": "http://127.0.0.1:9",
            "agents_url": "http://127.0.0.1:9",
            **overrides,
        },
    )
