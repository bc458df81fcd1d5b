"""The way in and out: password, second factor, sign-out, and the files every page needs."""

from typing import Final

from fastapi import APIRouter, Request, Response

from libs.common.database import Database
from libs.common.errors import NotFound
from services.gateway.auth.domain import AuthError
from services.gateway.console import operations
from services.gateway.console.domain import safe_path
from services.gateway.console.door import Door, SignInFirst, form_of
from services.gateway.console.render import View, to

_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
_KEPT: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_WRONG: Final = "The e-mail address or the password is not right."
_MESSAGES: Final = {
    "user_banned": "This account is banned.",
    "insufficient_aal": "This account has a second factor, which the console cannot check for a project's accounts.",
    "email_not_confirmed": "This address is not confirmed yet: open the link in the mail first.",
}


class EntryRoutes:
    def __init__(self, *, database: Database, door: Door, view: View) -> None:
        self._database = database
        self._door = door
        self._view = view

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/sign-in", self.page, methods=["GET"])
        router.add_api_route("/sign-in", self.sign_in, methods=["POST"])
        router.add_api_route("/code", self.code_page, methods=["GET"])
        router.add_api_route("/code", self.enter_code, methods=["POST"])
        router.add_api_route("/sign-out", self.sign_out, methods=["POST"])
        router.add_api_route("/static/{name}", self.file, methods=["GET"])
        return router

    async def page(self, request: Request, next: str = "") -> Response:  # noqa: A002 - the query's name
        if await self._door.entrant(request) is not None:
            return to(safe_path(next))
        return self._view.page("sign_in.html", request, next=safe_path(next), email="", problem="")

    async def sign_in(self, request: Request) -> Response:
        form = await form_of(request)
        email, path = form.get("email", ""), safe_path(form.get("next", ""))
        try:
            signed_in, needs_code = await self._door.sign_in(request, email=email, password=form.get("password", ""))
        except AuthError as error:
            problem = _MESSAGES.get(error.code, _WRONG)
            return self._view.page("sign_in.html", request, status=401, next=path, email=email, problem=problem)
        async with self._database.transaction() as conn:
            await operations.note(
                conn,
                actor=signed_in.user.id,
                action="console_signed_in",
                subject=str(signed_in.user.id),
                request_id=request.state.request_id,
            )
        response = to("/console/code" if needs_code else path)
        self._door.give_cookie(response, signed_in)
        return response

    async def code_page(self, request: Request) -> Response:
        entrant = await self._door.entrant(request)
        if entrant is None:
            raise SignInFirst
        if not entrant.needs_code:
            return to("/console")
        return self._view.page("code.html", request, form_token=entrant.form_token, problem="")

    async def enter_code(self, request: Request) -> Response:
        entrant = await self._door.entrant(request)
        if entrant is None:
            raise SignInFirst
        await self._door.read_form(request, entrant)
        if await self._door.check_code(entrant, request.state.form.get("code", "").replace(" ", "")):
            return to("/console")
        problem = "This code is not right, or was used before."
        return self._view.page("code.html", request, status=401, form_token=entrant.form_token, problem=problem)

    async def sign_out(self, request: Request) -> Response:
        entrant = await self._door.entrant(request)
        if entrant is not None:
            await self._door.read_form(request, entrant)
            await self._door.sign_out(entrant.user_id, entrant.session_id)
        response = to("/console/sign-in")
        self._door.take_cookie(response)
        return response

    async def file(self, request: Request, name: str) -> Response:
        await self._door.entrant(request)  # for those whom nothing is here, there are no files either
        if name not in self._view.static:
            raise NotFound("There is nothing here.")
        media_type = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        return Response(self._view.static[name], headers=_KEPT, media_type=media_type)
