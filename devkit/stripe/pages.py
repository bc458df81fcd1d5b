"""The hosted pages: checkout, portal, invoice and receipt, and the plain paths a script can use instead."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from devkit.stripe import checkout, customers, lifecycle, portal
from devkit.stripe.control import answer, read_fields
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.world import World, visible

ZERO_DECIMAL = {
    "bif",
    "clp",
    "djf",
    "gnf",
    "jpy",
    "kmf",
    "krw",
    "mga",
    "pyg",
    "rwf",
    "ugx",
    "vnd",
    "vuv",
    "xaf",
    "xof",
    "xpf",
}
SIGNS = {"usd": "$", "eur": "€", "gbp": "£"}
CARDS = (
    ("pm_card_visa", "Visa 4242: pays"),
    ("pm_card_chargeDeclined", "Visa 0002: declined at once"),
    ("pm_card_chargeCustomerFail", "Visa 0341: accepted, then every charge fails"),
)
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
}


def money(amount: int | None, currency: str) -> str:
    """An amount in minor units as people write it."""
    if amount is None:
        return "by usage"
    places = 0 if currency in ZERO_DECIMAL else 2
    number = f"{amount / 10**places:,.{places}f}"
    return f"{SIGNS[currency]}{number}" if currency in SIGNS else f"{number} {currency.upper()}"


def day(moment: int | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%-d %B %Y")


def environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    found.filters.update({"money": money, "day": day})  # pyright: ignore[reportCallIssue, reportArgumentType] - too narrow upstream
    return found


class Pages:
    """Serves the pages of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.templates = environment()

    def page(self, name: str, status: int = 200, **values: object) -> Response:
        text = self.templates.get_template(name).render(**values)
        return HTMLResponse(text, status, SAFE_HEADERS)

    def lost(self, error: ApiError) -> Response:
        return self.page("message.html", error.status, title="Nothing here", words=error.message)

    # Checkout

    async def checkout(self, request: Request) -> Response:
        """The page of a session: what is bought, and the buttons."""
        try:
            session = self.world.need("checkout.session", request.path_params["id"], noun="checkout session")
        except ApiError as error:
            return self.lost(error)
        if session["status"] != "open":
            return self.page(
                "message.html",
                410,
                title="This checkout is over",
                words=f"The session is {session['status']}. Start again from the shop.",
            )
        return self._checkout_page(session)

    def _checkout_page(self, session: Json, problem: str | None = None) -> Response:
        status = 200 if problem is None else 402
        return self.page("checkout.html", status, session=session, cards=CARDS, problem=problem)

    async def pay(self, request: Request) -> Response:
        """The Pay button: on success on to `success_url`, on a decline the page again with the reason."""
        fields = await read_fields(request)
        name = request.path_params["id"]
        try:
            session = self._complete(name, fields)
        except ApiError as error:
            found = self.world.store.find(name, "checkout.session")
            if found is None or found["status"] != "open":
                return self.lost(error)
            return self._checkout_page(found, error.message)
        return RedirectResponse(checkout.redirect_url(session), 303)

    async def complete(self, request: Request) -> Response:
        """The same for a script: fields `card` and `email` as form or JSON; answers JSON with `redirect_url`."""
        try:
            session = self._complete(request.path_params["id"], await read_fields(request))
        except ApiError as error:
            return answer(error.body(), error.status)
        names = ("id", "status", "payment_status", "customer", "subscription", "payment_intent", "invoice")
        return answer({**{name: session[name] for name in names}, "redirect_url": checkout.redirect_url(session)})

    def _complete(self, session_id: str, fields: Json) -> Json:
        card, email = str(fields.get("card") or "pm_card_visa"), fields.get("email")
        return self._done(
            lambda: checkout.complete(self.world, session_id, card=card, email=str(email) if email else None)
        )

    def _done(self, work: Callable[[], Json]) -> Json:
        result = self.world.attempt(work)
        if isinstance(result, ApiError):
            raise result
        return result

    # Portal

    async def portal(self, request: Request) -> Response:
        """What a customer sees of subscriptions and invoices."""
        try:
            session = portal.session_of(self.world, request.path_params["id"])
        except ApiError as error:
            return self.lost(error)
        return self._portal_page(session, problem=None, note=request.query_params.get("done"))

    def _portal_page(self, session: Json, *, problem: str | None, note: str | None) -> Response:
        store, owner = self.world.store, session["customer"]
        subscriptions = [
            body for body in store.newest_first("subscription", owner=owner) if body["status"] not in lifecycle.ENDED
        ]
        prices = [body for body in store.newest_first("price") if body["active"] and body["recurring"]]
        names = {price["product"]: cast("str", (store.find(price["product"]) or {}).get("name")) for price in prices}
        held = {item["price"]["product"] for body in subscriptions for item in lifecycle.items_of(body)}
        names |= {product: cast("str", (store.find(product) or {}).get("name")) for product in held}
        return self.page(
            "portal.html",
            200 if problem is None else 402,
            session=session,
            customer=store.find(owner) or {},
            subscriptions=subscriptions,
            invoices=list(store.newest_first("invoice", owner=owner))[:12],
            prices=[price for price in reversed(prices) if price["lookup_key"]],
            names=names,
            cards=(CARDS[0], CARDS[2]),
            problem=problem,
            note=note,
        )

    async def act(self, request: Request) -> Response:
        """`POST /portal/{id}/{cancel|resume|switch|card}`; scripts that ask for JSON get the changed object."""
        name, action = request.path_params["id"], request.path_params["action"]
        is_script = "application/json" in request.headers.get("accept", "")
        try:
            fields = await read_fields(request)
            changed = self._done(lambda: portal.act(self.world, name, action, fields))
        except ApiError as error:
            found = self.world.store.find(name, portal.KIND)
            if is_script or found is None:
                return answer(error.body(), error.status) if is_script else self.lost(error)
            return self._portal_page(found, problem=error.message, note=None)
        return answer(visible(changed)) if is_script else RedirectResponse(f"/portal/{name}?done={quote(action)}", 303)

    # Invoices and receipts

    async def invoice(self, request: Request) -> Response:
        try:
            found = self.world.need("invoice", request.path_params["id"])
        except ApiError as error:
            return self.lost(error)
        return self.page("invoice.html", invoice=found, problem=None)

    async def pay_invoice(self, request: Request) -> Response:
        """The Pay button of an open invoice, with a card that pays."""
        name = request.path_params["id"]
        try:
            paid = self._done(lambda: self._pay_with_visa(name))
        except ApiError as error:
            return self.lost(error)
        problem = None if paid["status"] == "paid" else "The payment was declined."
        return self.page("invoice.html", 200 if problem is None else 402, invoice=paid, problem=problem)

    def _pay_with_visa(self, invoice_id: str) -> Json:
        invoice = self.world.need("invoice", invoice_id)
        if invoice["status"] != "open":
            raise ApiError.invalid(f"The invoice is {invoice['status']}.")
        method = customers.attach(self.world, "pm_card_visa", invoice["customer"])
        return lifecycle.collect(self.world, invoice, method["id"])[0]

    async def invoice_pdf(self, request: Request) -> Response:
        try:
            found = self.world.need("invoice", request.path_params["id"])
        except ApiError as error:
            return self.lost(error)
        lines = [
            f"Invoice {found['number']}",
            f"Total {money(found['total'], found['currency'])}",
            "Local emulator: no money moved.",
        ]
        return Response(one_page_pdf(lines), media_type="application/pdf")

    async def receipt(self, request: Request) -> Response:
        try:
            found = self.world.need("charge", request.path_params["id"])
        except ApiError as error:
            return self.lost(error)
        words = f"{money(found['amount'], found['currency'])} on {day(found['created'])}, {found['status']}."
        return self.page("message.html", title="Receipt", words=words)

    async def home(self, _request: Request) -> Response:
        kinds = ("customer", "subscription", "invoice", "event")
        query = "SELECT count(*) AS n FROM objects WHERE kind = ? AND is_deleted = 0"
        counts = {kind: self.world.store.sql.execute(query, (kind,)).fetchone()["n"] for kind in kinds}
        return self.page(
            "home.html", counts=counts, now=day(self.world.now()), prices=list(self.world.store.oldest_first("price"))
        )


def one_page_pdf(lines: list[str]) -> bytes:
    """A valid PDF of one page with a few lines of plain ASCII text."""
    texts = [line.encode("ascii", "replace").decode().translate({40: "[", 41: "]", 92: "/"}) for line in lines]
    stream = "BT /F1 14 Tf 60 760 Td 22 TL " + " ".join(f"({text}) Tj T*" for text in texts) + " ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        "<< /Font << /F1 5 0 R >> >>",
    ]
    out, places = "%PDF-1.4\n", list[int]()
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return out.encode("ascii")


def routes(world: World) -> list[Route]:
    pages = Pages(world)
    return [
        Route("/", pages.home),
        Route("/checkout/{id}", pages.checkout),
        Route("/checkout/{id}/pay", pages.pay, methods=["POST"]),
        Route("/checkout/{id}/complete", pages.complete, methods=["POST"]),
        Route("/portal/{id}", pages.portal),
        Route("/portal/{id}/{action}", pages.act, methods=["POST"]),
        Route("/invoice/{id}", pages.invoice),
        Route("/invoice/{id}/pay", pages.pay_invoice, methods=["POST"]),
        Route("/invoice/{id}/pdf", pages.invoice_pdf),
        Route("/receipts/{id}", pages.receipt),
    ]
