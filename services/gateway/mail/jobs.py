"""Handing mail to the SMTP server: one letter at a time, retried with growing pauses, refused letters dropped."""

import asyncio
from email.message import EmailMessage
from email.utils import formatdate, make_msgid, parseaddr
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.mail import queries
from services.gateway.mail.domain import LETTERS

log = structlog.get_logger(__name__)

POLL_S: Final = 0.25
SMTP_TIMEOUT_S: Final = 10
MAX_DELAY_S: Final = 300
_PERMANENT: Final = range(500, 600)


class MailSender:
    def __init__(self, database: Database, *, smtp_url: str, mail_from: str) -> None:
        self._database = database
        self._server = urlsplit(smtp_url)
        self._from = mail_from
        self._templates = Environment(
            loader=PackageLoader("services.gateway.mail"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
        )

    async def run(self) -> None:
        while True:
            try:
                while await self.send_next():
                    pass
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            await asyncio.sleep(POLL_S)

    async def send_next(self) -> bool:
        """Hand over one letter that is due; False if there is none. A letter not taken comes again later."""
        async with self._database.transaction() as conn:
            row = await queries.lease_mail(conn)
        if row is None:
            return False
        try:
            await self._hand_over(self.compose(row["address"], row["letter"], row["content"]))
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            await self._not_taken(row, error)
            return True
        async with self._database.transaction() as conn:
            await queries.delete_mail(conn, row["id"])
        return True

    def compose(self, address: str, letter: str, content: dict[str, Any]) -> EmailMessage:
        """The letter as plain text and HTML."""
        kind = LETTERS[letter].filled(content)
        values = {"letter": kind, **{name: content.get(name, "") for name in ("code", "link", "portal")}}
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._from, address, kind.subject
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain=parseaddr(self._from)[1].partition("@")[2] or "localhost")
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(self._templates.get_template("letter.txt").render(values))
        message.add_alternative(self._templates.get_template("letter.html").render(values), subtype="html")
        return message

    async def _hand_over(self, message: EmailMessage) -> None:
        server = self._server
        is_tls = server.scheme == "smtps"
        await aiosmtplib.send(
            message,
            hostname=server.hostname,
            port=server.port or (465 if is_tls else 587),
            username=unquote(server.username) if server.username else None,
            password=unquote(server.password) if server.password else None,
            use_tls=is_tls,
            timeout=SMTP_TIMEOUT_S,
        )

    async def _not_taken(self, row: Any, error: Exception) -> None:
        codes = [error.code] if isinstance(error, aiosmtplib.SMTPResponseException) else []
        if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
            codes = [refusal.code for refusal in error.recipients]
        is_refused = bool(codes) and all(code in _PERMANENT for code in codes)
        log.warning("mail_not_taken", letter=row["letter"], error=type(error).__name__, codes=codes)
        async with self._database.transaction() as conn:
            if is_refused:
                await queries.delete_mail(conn, row["id"])
            else:
                delay_s = min(2 ** min(row["attempts"], 12), MAX_DELAY_S)
                await queries.mark_failed(conn, mail_id=row["id"], error=type(error).__name__, delay_s=delay_s)
