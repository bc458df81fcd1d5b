"""Secrets and keys, made once for each checkout: random passwords, signing keys, and the product's two API keys."""

import json
import secrets
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

# What the emulator's key begins with: any other key is a real one and is meant for Stripe itself.
EMULATOR_KEY_PREFIX = "sk_test_emulator"
_TEN_YEARS_S = 10 * 365 * 24 * 3600


def password() -> str:
    """Safe in URLs, shells and configuration files alike."""
    return secrets.token_hex(24)


def signing_keys() -> str:
    """A JSON array with one private ES256 key; more can be put before it, the first one signs."""
    private = ec.generate_private_key(ec.SECP256R1())
    jwk = ECAlgorithm.to_jwk(private, as_dict=True)
    return json.dumps([{**jwk, "kid": secrets.token_hex(8), "alg": "ES256", "use": "sig"}])


def api_key(role: str, secret: str) -> str:
    """The API key for `anon` or `service_role`: a token that says no more than its role, for ten years."""
    now = int(time.time())
    return jwt.encode({"iss": "supabase", "role": role, "iat": now, "exp": now + _TEN_YEARS_S}, secret, "HS256")


def is_signed_by(token: str, secret: str) -> bool:
    try:
        jwt.decode(token, secret, algorithms=["HS256"], options={"verify_aud": False})
    except jwt.InvalidTokenError:
        return False
    return True


def stripe_key() -> str:
    return f"{EMULATOR_KEY_PREFIX}{secrets.token_hex(16)}"


def webhook_secret() -> str:
    return f"whsec_{secrets.token_hex(24)}"


def admin_password() -> str:
    return secrets.token_urlsafe(18)
