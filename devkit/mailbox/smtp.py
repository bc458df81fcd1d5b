"""SMTP in: every letter is accepted, unless a test asked for a refusal."""

import random
from dataclasses import asdict, dataclass, field
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from devkit.mailbox.reading import summary, words_of
from devkit.mailbox.store import Letters, received

LARGEST_BYTES = 10 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Trigger:
    """How often (percent) and with which SMTP code a step is refused."""

    ErrorCode: int = 451
    Probability: int = 0

    def strikes(self) -> bool:
        return random.randrange(100) < self.Probability  # noqa: S311 - chance, not secrecy


@dataclass(slots=True, kw_only=True)
class Chaos:
    """Mailpit's chaos settings: refusals by sender or by recipient."""

    Sender: Trigger = field(default_factory=Trigger)
    Recipient: Trigger = field(default_factory=Trigger)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Postman:
    """The handler that aiosmtpd calls; it finds the hooks by their names."""

    def __init__(self, letters: Letters, chaos: Chaos) -> None:
        self._letters = letters
        self._chaos = chaos

    async def handle_MAIL(  # noqa: N802 - the name is aiosmtpd's
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._chaos.Sender.strikes():
            return f"{self._chaos.Sender.ErrorCode} refused on request"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - the name is aiosmtpd's
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._chaos.Recipient.strikes():
            return f"{self._chaos.Recipient.ErrorCode} refused on request"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        raw = envelope.original_content or b""
        letter = received(sender=envelope.mail_from or "", recipients=envelope.rcpt_tos, raw=raw)
        self._letters.add(letter, line=summary(letter), words=words_of(letter))
        return f"250 Ok: queued as {letter.id}"


def protocol(postman: Postman) -> SMTP:
    """A protocol for one connection. Any user name and password is accepted, and none is needed."""
    return SMTP(
        postman,
        data_size_limit=LARGEST_BYTES,
        enable_SMTPUTF8=True,
        hostname="mailbox.local",
        ident="mailbox",
        auth_require_tls=False,
        authenticator=_anyone,
    )


def _anyone(*_: object) -> AuthResult:
    return AuthResult(success=True)
