"""Letters as Mailpit's API shows them, and its search words."""

import email
import email.policy
import re
import shlex
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from html import unescape
from typing import Any, cast

from devkit.mailbox.store import Heading, Letter

Json = dict[str, Any]
SNIPPET_CHARACTERS = 250
TAGS = re.compile(r"<(style|script|head)\b.*?</\1>|<[^>]+>", re.DOTALL | re.IGNORECASE)


def parsed(letter: Letter) -> EmailMessage:
    return email.message_from_bytes(letter.raw, policy=email.policy.default)


def addresses(message: EmailMessage, field: str) -> list[Json]:
    values = [str(value) for value in message.get_all(field, [])]
    return [{"Name": name, "Address": address} for name, address in getaddresses(values) if address]


def bodies(message: EmailMessage) -> tuple[str, str]:
    """The plain text and the HTML, empty when the letter has none."""
    found: dict[str, str] = {"plain": "", "html": ""}
    for part in message.walk():
        subtype = part.get_content_subtype()
        is_body = part.get_content_maintype() == "text" and part.get_content_disposition() != "attachment"
        if is_body and subtype in found and not found[subtype]:
            found[subtype] = str(part.get_content())
    return found["plain"], found["html"]


def snippet(text: str, html: str) -> str:
    words = text or unescape(TAGS.sub(" ", html))
    return " ".join(words.split())[:SNIPPET_CHARACTERS]


def summary(letter: Letter) -> Json:
    """One line of a list."""
    message = parsed(letter)
    text, html = bodies(message)
    sender = addresses(message, "from") or [{"Name": "", "Address": letter.sender}]
    to, cc = addresses(message, "to"), addresses(message, "cc")
    named = {one["Address"].lower() for one in [*to, *cc]}
    # Who got the letter without being named in it was a blind copy.
    bcc = [{"Name": "", "Address": one} for one in letter.recipients if one.lower() not in named]
    return {
        "ID": letter.id,
        "MessageID": str(message.get("message-id", "")).strip("<>"),
        "Read": letter.is_read,
        "From": sender[0],
        "To": to,
        "Cc": cc,
        "Bcc": bcc,
        "ReplyTo": addresses(message, "reply-to"),
        "Subject": str(message.get("subject", "")),
        "Created": letter.created_at.isoformat().replace("+00:00", "Z"),
        "Username": "",
        "Tags": [],
        "Size": len(letter.raw),
        "Attachments": len(attachments(message)),
        "Snippet": snippet(text, html),
    }


def attachments(message: EmailMessage) -> list[Json]:
    return [
        {
            "PartID": str(number),
            "FileName": part.get_filename() or "",
            "ContentType": part.get_content_type(),
            "ContentID": str(part.get("content-id", "")).strip("<>"),
            "Size": len(cast("bytes", part.get_payload(decode=True) or b"")),
        }
        for number, part in enumerate(message.iter_attachments(), 1)
        if part.get_content_disposition() == "attachment"
    ]


def whole(letter: Letter) -> Json:
    """Everything of one letter."""
    message = parsed(letter)
    text, html = bodies(message)
    line = summary(letter)
    date = message.get("date")
    sent_at = letter.created_at if date is None else parsedate_to_datetime(str(date))
    kept = ("ID", "MessageID", "From", "To", "Cc", "Bcc", "ReplyTo", "Subject", "Tags", "Size", "Username")
    return {name: line[name] for name in kept} | {
        "ReturnPath": letter.sender,
        "ListUnsubscribe": {"Header": "", "Links": [], "Errors": "", "HeaderPost": ""},
        "Date": sent_at.isoformat().replace("+00:00", "Z"),
        "Text": text,
        "HTML": html,
        "Inline": [],
        "Attachments": attachments(message),
    }


def headers(letter: Letter) -> dict[str, list[str]]:
    message = parsed(letter)
    return {name: [str(value) for value in message.get_all(name, [])] for name in message}


def words_of(letter: Letter) -> str:
    """What a search for plain words looks through."""
    message = parsed(letter)
    text, html = bodies(message)
    fields = " ".join(str(message.get(name, "")) for name in ("subject", "from", "to"))
    return f"{fields} {text} {unescape(TAGS.sub(' ', html))}".lower()


def matches(heading: Heading, query: str) -> bool:
    """Whether a letter fits every word of a query.

    The words: `to:`, `cc:`, `bcc:`, `from:`, `reply-to:`, `subject:`, `is:read`, `is:unread`, `id:`, `message-id:`,
    plain text; a leading `-` means not.
    """
    try:
        words = shlex.split(query.lower())
    except ValueError:  # an open quotation mark: take the words as they stand
        words = query.lower().split()
    return all(_fits(heading, word.removeprefix("-")) != word.startswith("-") for word in words)


def _fits(heading: Heading, word: str) -> bool:
    line = heading.line
    field, colon, value = word.partition(":")
    match field if colon else "":
        case "to" | "cc" | "bcc" | "from" | "reply-to" as name:
            held = {"to": "To", "cc": "Cc", "bcc": "Bcc", "from": "From", "reply-to": "ReplyTo"}[name]
            people = cast("list[Json]", [line[held]] if name == "from" else line[held])
            return any(value in f"{one['Name']} {one['Address']}".lower() for one in people)
        case "subject":
            return value in str(line["Subject"]).lower()
        case "is":
            return heading.is_read == (value == "read")
        case "message-id" | "id":
            return value in {heading.id.lower(), str(line["MessageID"]).lower()}
        case _:
            return word in heading.words
