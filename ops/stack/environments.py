"""What each process is told: the one table of which setting a service knows, and the addresses it is given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ops.engines.definitions import OPERATOR
from ops.engines.postgresql import superuser_url
from ops.engines.redis_server import USER as REDIS_USER
from ops.stack.keys import EMULATOR_KEY_PREFIX

DATABASE = "venture"
VHOST = "venture"

_EVERY_SERVICE = (
    "ENVIRONMENT",
    "LOG_LEVEL",
    "SERVICE_TOKEN_SECRET",
    "SENTRY_DSN",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "BROKER_EVENTS_PER_MESSAGE",
)
# Least privilege: a process is given these settings, its own addresses, and nothing else.
KNOWN_BY: Mapping[str, tuple[str, ...]] = {
    "gateway": (
        *_EVERY_SERVICE,
        "FRONTEND_URL",
        "CORS_ORIGINS",
        "NEXT_PUBLIC_SUPABASE_URL",
        "NEXT_PUBLIC_SUPABASE_ANON_KEY",
        "SUPABASE_SERVICE_ROLE_KEY",
        "SUPABASE_URL",
        "SUPABASE_JWKS_TTL_S",
        "SUPABASE_JWT_SECRET",
        "AUTH_SIGNING_KEYS",
        "AUTH_AUTOCONFIRM",
        "AUTH_ANONYMOUS_ENABLED",
        "AUTH_REFUSE_GUESSABLE",
        "AUTH_MAIL_INTERVAL_S",
        "AUTH_REDIRECT_URLS",
        "ACCESS_TOKEN_TTL_S",
        "REFRESH_REUSE_INTERVAL_S",
        "RATE_LIMIT_WINDOW_MS",
        "RATE_LIMIT_MAX_REQUESTS",
        "RATE_LIMIT_ROUTE_GROUPS",
        "STREAMS_PER_USER",
        "STREAMS_PER_PROCESS",
        "AUTH_RATE_LIMIT_WINDOW_MS",
        "AUTH_RATE_LIMIT_MAX_REQUESTS",
        "MAINTENANCE_MODE",
        "ADMIN_USER_IDS",
        "TRUSTED_PROXY_HOPS",
        "SMTP_URL",
        "MAIL_FROM",
    ),
    "billing": (
        *_EVERY_SERVICE,
        "STRIPE_SECRET_KEY",
        "STRIPE_WEBHOOK_SECRET",
        "STRIPE_API_BASE",
        "FRONTEND_URL",
        "BILLING_GRACE_DAYS",
        "BILLING_EVENT_KEEP_DAYS",
    ),
    "metering": _EVERY_SERVICE,
    "agents": (
        *_EVERY_SERVICE,
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "AGENTS_MODELS",
        "AGENTS_MAX_PARALLEL_RUNS",
        "AGENTS_PROVIDER_PARALLEL_CALLS",
        "AGENTS_EVENT_RETENTION_DAYS",
    ),
}
# How this machine reaches the outside: taken from the command's environment for every process, never from `.env`.
_OF_THE_MACHINE = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "TZ")
_LOCAL = "127.0.0.1,localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything is. `ports` has one entry for each port name of the plan."""

    ports: Mapping[str, int]
    values: Mapping[str, str]

    def http(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def database(self, owner: str) -> str:
        password = self.values[f"{owner.upper()}_DB_PASSWORD"]
        return f"postgresql://venture_{owner}:{password}@127.0.0.1:{self.ports['postgres']}/{DATABASE}"

    def superuser(self, database: str = DATABASE) -> str:
        return superuser_url(self.ports["postgres"], self.values["POSTGRES_PASSWORD"], database)

    def amqp(self, user: str) -> str:
        password = self.values[f"{user.upper()}_AMQP_PASSWORD"]
        return f"amqp://{user}:{password}@127.0.0.1:{self.ports['rabbitmq']}/{VHOST}"

    @property
    def redis(self) -> str:
        return f"redis://{REDIS_USER}:{self.values['REDIS_PASSWORD']}@127.0.0.1:{self.ports['redis']}/0"

    @property
    def gateways(self) -> list[str]:
        names = [name for name in self.ports if name == "gateway" or name.removeprefix("gateway-").isdigit()]
        return [self.http(name) for name in names]

    @property
    def stripe(self) -> str:
        """The emulator, unless a base was set or the key is a real one: then Stripe itself, said as an empty base."""
        if "STRIPE_API_BASE" in self.values:
            return self.values["STRIPE_API_BASE"]
        key = self.values["STRIPE_SECRET_KEY"]
        return "" if key and not key.startswith(EMULATOR_KEY_PREFIX) else self.http("stripe")


def service_environment(service: str, number: int, where: Addresses) -> dict[str, str]:
    """Everything one replica gets. A setting without a value is left out, so that the service's own default holds."""
    known = {name: where.values.get(name, "") for name in KNOWN_BY[service]}
    name = port_name(service, number)
    derived = {
        "HOST": "127.0.0.1",
        "PORT": str(where.ports[name]),
        "METRICS_PORT": str(where.ports[f"{name}-metrics"]),
        "DATABASE_URL": where.database(service),
        "AMQP_URL": where.amqp(service),
        "REDIS_URL": where.redis,
    }
    values = {**machine_environment(), **_defaults(service, where), **{k: v for k, v in known.items() if v}, **derived}
    return {name: value for name, value in values.items() if value}


def machine_environment() -> dict[str, str]:
    """What every Python process gets: how to reach the outside, with everything on this machine reached directly."""
    passed = {name: os.environ[name] for name in _OF_THE_MACHINE if os.environ.get(name)}
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), _LOCAL]))
    return {"PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8", "NO_PROXY": direct, "no_proxy": direct, **passed}


def _defaults(service: str, where: Addresses) -> dict[str, str]:
    shared = {"ENVIRONMENT": "development"}
    if service == "gateway":
        return {
            **shared,
            "BILLING_URL": where.http("billing"),
            "METERING_URL": where.http("metering"),
            "AGENTS_URL": where.http("agents"),
            "FRONTEND_URL": where.http("gateway"),
            "NEXT_PUBLIC_SUPABASE_URL": where.http("gateway"),
            "SMTP_URL": f"smtp://127.0.0.1:{where.ports['mailbox-smtp']}",
        }
    if service == "billing":
        return {**shared, "FRONTEND_URL": where.http("gateway"), "STRIPE_API_BASE": where.stripe}
    if service == "agents":
        return {**shared, "METERING_URL": where.http("metering")}
    return shared


def port_name(service: str, number: int) -> str:
    return service if number == 1 else f"{service}-{number}"


def public_environment(where: Addresses) -> dict[str, str]:
    """What `make env` prints: all that a person, a test or the demo needs to talk to the running stack."""
    values = where.values
    return {
        "GATEWAY_URL": where.http("gateway"),
        "GATEWAY_URLS": ",".join(where.gateways),
        "BILLING_URL": where.http("billing"),
        "METERING_URL": where.http("metering"),
        "AGENTS_URL": where.http("agents"),
        "NEXT_PUBLIC_SUPABASE_URL": values.get("NEXT_PUBLIC_SUPABASE_URL") or where.http("gateway"),
        "NEXT_PUBLIC_SUPABASE_ANON_KEY": values["NEXT_PUBLIC_SUPABASE_ANON_KEY"],
        "SUPABASE_SERVICE_ROLE_KEY": values["SUPABASE_SERVICE_ROLE_KEY"],
        "OPERATOR_DATABASE_URL": where.database(OPERATOR),
        "AMQP_URL": where.amqp(OPERATOR),
        "REDIS_URL": where.redis,
        "STRIPE_API_BASE": where.stripe,
        "STRIPE_SECRET_KEY": values["STRIPE_SECRET_KEY"],
        "STRIPE_WEBHOOK_SECRET": values["STRIPE_WEBHOOK_SECRET"],
        "MAIL_API_URL": where.http("mailbox-http"),
        "ADMIN_EMAIL": values["ADMIN_EMAIL"],
        "ADMIN_PASSWORD": values["ADMIN_PASSWORD"],
    }


def operator_environment(where: Addresses) -> dict[str, str]:
    """What the operator's command line is given besides: the key of internal calls, private metrics, all settings."""
    metrics = [name for name in where.ports if name.endswith("-metrics")]
    return {
        **{name: value for name, value in where.values.items() if value},
        **public_environment(where),
        "METRICS_URLS": ",".join(f"{where.http(name)}/metrics" for name in metrics),
        "SUPERUSER_DATABASE_URL": where.superuser(),
        "SMTP_URL": where.values.get("SMTP_URL") or f"smtp://127.0.0.1:{where.ports.get('mailbox-smtp', 0)}",
        "FRONTEND_URL": where.values.get("FRONTEND_URL") or where.http("gateway"),
    }
