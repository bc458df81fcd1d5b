"""Where links in mails may lead."""

import pytest

from services.gateway.codes.domain import Redirects

REDIRECTS = Redirects(
    site_url="https://app.example.com",
    allowed=("https://*.preview.example.net/**", "venture://callback", "https://docs.example.org/guide/*"),
)


@pytest.mark.parametrize(
    "url",
    [
        "https://app.example.com",
        "https://app.example.com/reset?step=2#part",
        "https://app.example.com:443/x",
        "https://one.preview.example.net/a/b.c",
        "venture://callback",
        "venture://callback#ignored",
        "https://docs.example.org/guide/intro",
    ],
)
def test_the_site_and_what_is_listed_are_kept(url: str) -> None:
    assert REDIRECTS.choose(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://evil.example",
        "https://app.example.com@evil.example",
        "https://app.example.com:8443/",
        "http://app.example.com/",
        "//evil.example",
        "https:evil.example",
        "https:/evil.example",
        "https://app.example.com.evil.example",
        "https://app.example.com\\@evil.example",
        "\\evil.example",
        "%2f%2fevil.example",
        "https://app.example.com/\r\nSet-Cookie:x=1",
        "https://a.b.preview.example.net/x",
        "https://evil.example/.preview.example.net/",
        "https://evil.example#.preview.example.net/",
        "javascript:alert(1)",
        "venture://callback/more",
        "https://docs.example.org/guide/a/b",
        "https://docs.example.org/guide/a.b",
        "https://10.0.0.1/",
        "https://[::1",
        "https://app.example.com:99999999/",
    ],
)
def test_anything_else_leads_to_the_site(url: str) -> None:
    assert REDIRECTS.choose(url) == "https://app.example.com"


def test_a_local_site_takes_any_local_port() -> None:
    local = Redirects(site_url="http://127.0.0.1:8000")
    assert local.choose("http://localhost:3000/after") == "http://localhost:3000/after"
    assert local.choose("http://127.0.0.1.evil.example/") == "http://127.0.0.1:8000"
