"""A page on another origin, in Chromium: sign-in through CORS, and refusals a script can read."""

import shutil
import threading
from collections.abc import Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.gateway.wiring import build
from tests.harness.browser import open_browser
from tests.harness.gateway import gateway_settings
from tests.harness.javascript import client_folder
from tests.harness.services import Place, run_service

SCRIPT = """
async ([url, key]) => {
  const { auth } = supabase.createClient(url, key);
  const email = "ada@example.com", password = "correct horse battery";
  const signedUp = await auth.signUp({ email, password });
  const wrong = await auth.signInWithPassword({ email, password: "something else" });
  const right = await auth.signInWithPassword({ email, password });
  const claims = await auth.getClaims();
  const out = await auth.signOut();
  return {
    signedUp: signedUp.error && signedUp.error.message,
    wrong: { code: wrong.error.code, status: wrong.error.status },
    right: right.data.user && right.data.user.email,
    claims: claims.error ? claims.error.message : claims.data.claims.email,
    out: out.error,
  };
}
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Generator[str, None, None]:
    """An origin that is not the gateway's, with a page that loads the client's browser build."""
    build = client_folder("supabase") / "node_modules/@supabase/supabase-js/dist/umd/supabase.js"
    shutil.copy(build, tmp_path / "supabase.js")
    (tmp_path / "index.html").write_text("<!doctype html><script src='supabase.js'></script>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def in_page(origin: str, arguments: list[str]) -> Any:
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.goto(f"{origin}/index.html")
        return await page.evaluate(SCRIPT, arguments)


async def test_a_page_on_another_origin_signs_in_and_reads_the_code_of_a_refusal(place: Place, elsewhere: str) -> None:
    settings = gateway_settings(place, cors_origins=(elsewhere,))
    async with run_service(build(settings)) as gateway:
        answer = await in_page(elsewhere, [gateway.base_url, settings.next_public_supabase_anon_key.get_secret_value()])
    assert answer == {
        "signedUp": None,
        "wrong": {"code": "invalid_credentials", "status": 400},
        "right": "ada@example.com",
        "claims": "ada@example.com",
        "out": None,
    }
