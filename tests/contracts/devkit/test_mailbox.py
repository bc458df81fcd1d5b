"""The mailbox: SMTP in, Mailpit's API out."""

import smtplib
from collections.abc import Generator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx
import pytest
from emulation import Process, free_port


class Mailbox(Process):
    def __init__(self, home: Path, *, keep: int = 1_000) -> None:
        self.smtp, self.http = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        state = str(home / "mailbox.db")
        ports = ("--smtp-port", str(self.smtp), "--http-port", str(self.http))
        super().__init__("devkit.mailbox", *ports, "--state", state, "--keep", str(keep))

    def run(self) -> "Mailbox":
        self.start(f"{self.url}/readyz")
        return self

    def get(self, path: str, **query: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, letter: EmailMessage, *, also_to: str | None = None) -> None:
        with smtplib.SMTP("127.0.0.1", self.smtp, timeout=5) as server:
            people = [str(letter["To"]), *([also_to] if also_to else [])]
            server.send_message(letter, to_addrs=people)


def a_letter(*, to: str = "ada@b.example", subject: str = "Hello", text: str = "Your code is 123456.") -> EmailMessage:
    letter = EmailMessage()
    letter["From"] = "Venture <no-reply@venture.example>"
    letter["To"] = to
    letter["Subject"] = subject
    letter.set_content(text)
    return letter


@pytest.fixture
def mailbox(tmp_path: Path) -> Generator[Mailbox]:
    running = Mailbox(tmp_path, keep=5).run()
    yield running
    running.kill()


def test_a_letter_is_kept_and_shown_as_mailpit_shows_it(mailbox: Mailbox) -> None:
    letter = a_letter(subject="Grüße")
    letter.add_alternative("<p>Your code is <b>123456</b>.</p>", subtype="html")
    letter.add_attachment(b"a,b", maintype="text", subtype="csv", filename="list.csv")
    mailbox.send(letter, also_to="hidden@b.example")
    page = mailbox.get("/messages")
    assert (page["total"], page["unread"], page["messages_count"]) == (1, 1, 1)
    line = page["messages"][0]
    assert line["From"] == {"Name": "Venture", "Address": "no-reply@venture.example"}
    assert line["To"] == [{"Name": "", "Address": "ada@b.example"}]
    assert line["Bcc"] == [{"Name": "", "Address": "hidden@b.example"}]
    assert (line["Subject"], line["Attachments"], line["Snippet"]) == ("Grüße", 1, "Your code is 123456.")
    whole = mailbox.get(f"/message/{line['ID']}")
    assert whole["Text"].strip() == "Your code is 123456."
    assert "<b>123456</b>" in whole["HTML"]
    assert whole["Attachments"][0]["FileName"] == "list.csv"
    assert whole["Date"]
    assert mailbox.get("/messages")["unread"] == 0
    assert "Subject" in mailbox.get("/message/latest/headers")
    assert "Grüße" in httpx.get(mailbox.url).text
    assert httpx.get(f"{mailbox.url}/view/{line['ID']}").status_code == 200


def test_letters_are_searched_and_deleted(mailbox: Mailbox) -> None:
    for name, subject in (("ada", "Confirm your address"), ("bob", "Reset your password")):
        mailbox.send(a_letter(to=f"{name}@b.example", subject=subject))

    def found(query: str) -> list[str]:
        return [line["To"][0]["Address"] for line in mailbox.get("/search", query=query)["messages"]]

    assert found("to:ada@b.example") == ["ada@b.example"]
    assert found('subject:"reset your"') == ["bob@b.example"]
    assert found("123456 -to:ada") == ["bob@b.example"]
    assert found("is:read") == []
    only = mailbox.get("/search", query="to:bob")["messages"][0]["ID"]
    httpx.request("DELETE", f"{mailbox.url}/api/v1/messages", json={"IDs": [only]})
    assert found("to:b.example") == ["ada@b.example"]
    httpx.delete(f"{mailbox.url}/api/v1/messages")
    assert mailbox.get("/info")["Messages"] == 0


def test_it_keeps_only_so_many_and_survives_a_kill(mailbox: Mailbox) -> None:
    for number in range(8):
        mailbox.send(a_letter(subject=str(number)))
    mailbox.kill()
    mailbox.run()
    assert [line["Subject"] for line in mailbox.get("/messages")["messages"]] == ["7", "6", "5", "4", "3"]
    assert [line["Subject"] for line in mailbox.get("/messages", start="1", limit="2")["messages"]] == ["6", "5"]
    assert mailbox.resident_mb() < 60


def test_chaos_refuses_on_request(mailbox: Mailbox) -> None:
    settings = {"Recipient": {"ErrorCode": 451, "Probability": 100}}
    assert httpx.put(f"{mailbox.url}/api/v1/chaos", json=settings).status_code == 200
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        mailbox.send(a_letter())
    httpx.put(f"{mailbox.url}/api/v1/chaos", json={})
    mailbox.send(a_letter())
    assert mailbox.get("/messages")["total"] == 1
