"""What is guessed first is refused in every usual disguise, and what is not is left alone."""

import pytest

from services.gateway.auth.common_passwords import is_common


@pytest.mark.parametrize(
    "password",
    """password Password1 p@ssw0rd P@$$w0rd! password123 Passw0rd2024! qwertyuiop qwerty123 1q2w3e4r5t 12345678
    123456789 1234567890 87654321 11111111 00000000 abcdefgh abcd1234 abc12345 iloveyou iloveyou1 letmein1! welcome1
    Welcome2026 sunshine princess football baseball superman trustno1 dragon123 monkey123 qazwsxedc 1qaz2wsx zaq12wsx
    asdfghjkl adminadmin admin123! changeme passwort test1234 testtest 12341234 aaaaaaaa abababab Summer2026! asdfasdf
    qwerqwer Venture2026 secret123 michael1 starwars""".split(),  # noqa: SIM905 - a list of so many words reads better so
)
def test_a_password_that_is_guessed_first_is_common(password: str) -> None:
    assert is_common(password)


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery",
        "correct horse",
        "tr0ub4dor&3",
        "my password is long",
        "7f3kq9zx",
        "lantern-harbour-19",
        "masterpiece theatre",
        "\U0001f40e" * 3 + "stable",
        "passwordless future",
        "kx92hd71",
    ],
)
def test_anything_else_is_not(password: str) -> None:
    assert not is_common(password)
