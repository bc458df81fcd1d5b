"""The only module of the gateway that reads the environment."""

import json
import re
from typing import Annotated, Any, Self

import jwt
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from libs.common.settings import DEMO_JWT_SECRET, CommonSettings, Secret, split_commas


def _read_groups(value: Any) -> Any:
    """`export=20,runs=60`: a route group and how many requests of it a window allows."""
    if not isinstance(value, str):
        return value
    groups: dict[str, int] = {}
    for part in split_commas(value):
        name, _, number = part.partition("=")
        if not re.fullmatch(r"[a-z-]{1,40}", name) or not number.isdigit() or int(number) < 1:
            raise ValueError("is not a list of route groups with their limits, such as export=20,runs=60")
        groups[name] = int(number)
    return groups


def _check_signing_keys(value: SecretStr) -> SecretStr:
    try:
        keys = json.loads(value.get_secret_value())
    except ValueError:
        raise ValueError("is not JSON; it is a list of private ES256 JWKs, the first of which signs") from None
    if not isinstance(keys, list) or not keys:
        raise ValueError("is not a list of private ES256 JWKs with at least one key")
    return value


def _check_api_key(value: SecretStr) -> SecretStr:
    """Refuse what is signed with the secret of every local Supabase: anybody can make such a key."""
    try:
        jwt.decode(
            value.get_secret_value(),
            DEMO_JWT_SECRET,
            algorithms=["HS256"],
            options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False},
        )
    except jwt.PyJWTError:
        return value
    raise ValueError("is one of Supabase's demo keys, or signed with their secret; generate a new one")


ApiKey = Annotated[Secret, AfterValidator(_check_api_key)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]


class Settings(CommonSettings):
    port: int = 8000
    billing_url: str = "http://127.0.0.1:8001"
    metering_url: str = "http://127.0.0.1:8002"
    agents_url: str = "http://127.0.0.1:8003"

    frontend_url: str = "http://localhost:3000"
    cors_origins: CommaSeparated = ()
    next_public_supabase_url: str = "http://127.0.0.1:8000"
    """The address clients know us by; issuer of access tokens and host of every link in a mail."""
    supabase_url: str = ""
    """An existing Supabase project that signs people in instead of us; then the keys below are that project's."""
    supabase_jwks_ttl_s: int = Field(default=600, ge=0, le=86_400)
    """As long as Supabase lets its key set be cached; a key withdrawn there is good here for this long at most."""
    next_public_supabase_anon_key: ApiKey
    supabase_service_role_key: ApiKey
    supabase_jwt_secret: Secret | None = None
    auth_signing_keys: Annotated[SecretStr, AfterValidator(_check_signing_keys)] | None = None
    auth_autoconfirm: bool = False
    auth_anonymous_enabled: bool = True
    auth_refuse_guessable: bool | None = None
    """Refuse new passwords that are guessed first. Unless it is said, in production alone."""
    auth_mail_interval_s: int = Field(default=60, ge=0, le=3600)
    auth_redirect_urls: CommaSeparated = ()
    smtp_url: SecretStr = SecretStr("")
    mail_from: str = "Venture Companion <no-reply@localhost>"
    access_token_ttl_s: int = Field(default=3600, ge=60, le=604_800)
    refresh_reuse_interval_s: int = Field(default=10, ge=0, le=3600)

    rate_limit_window_ms: int = Field(default=900_000, ge=1000)
    rate_limit_max_requests: int = Field(default=100, ge=1)
    auth_rate_limit_window_ms: int = Field(default=300_000, ge=1000)
    auth_rate_limit_max_requests: int = Field(default=30, ge=1)
    rate_limit_route_groups: Annotated[dict[str, int], NoDecode, BeforeValidator(_read_groups)] = Field(
        default_factory=lambda: {"export": 20}
    )
    """Further limits in the same window, by the part of the house: `export` is /v1/export."""
    streams_per_user: int = Field(default=10, ge=1)
    streams_per_process: int = Field(default=10_000, ge=1)
    trusted_proxy_hops: int = Field(default=0, ge=0, le=10)
    maintenance_mode: bool = False
    admin_user_ids: CommaSeparated = ()

    @model_validator(mode="after")
    def _one_purpose_a_secret(self) -> Self:
        if not self.supabase_url and (self.supabase_jwt_secret is None or self.auth_signing_keys is None):
            raise ValueError("SUPABASE_JWT_SECRET and AUTH_SIGNING_KEYS are needed unless SUPABASE_URL is set")
        if self.service_token_secret.get_secret_value() == self.jwt_secret:
            raise ValueError("SERVICE_TOKEN_SECRET and SUPABASE_JWT_SECRET are equal; each purpose has its own secret")
        if self.next_public_supabase_anon_key.get_secret_value() == self.supabase_service_role_key.get_secret_value():
            raise ValueError("NEXT_PUBLIC_SUPABASE_ANON_KEY and SUPABASE_SERVICE_ROLE_KEY are equal; one is public")
        if self.environment == "production" and "*" in self.cors_origins:
            raise ValueError("CORS_ORIGINS is *; name the frontend's origins in production")
        return self

    @property
    def refuses_common_passwords(self) -> bool:
        is_said = self.auth_refuse_guessable
        return self.environment == "production" if is_said is None else is_said

    @property
    def issuer(self) -> str:
        return f"{(self.supabase_url or self.next_public_supabase_url).rstrip('/')}/auth/v1"

    @property
    def jwt_secret(self) -> str:
        """Empty where the project signs with keys alone."""
        return self.supabase_jwt_secret.get_secret_value() if self.supabase_jwt_secret is not None else ""

    @property
    def allowed_origins(self) -> list[str]:
        return [*self.cors_origins] or [self.frontend_url.rstrip("/")]
