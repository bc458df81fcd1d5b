"""Signing in to the console with a password of the project's: proved there, kept here as a session of the console's."""

from libs.common.database import Database
from services.gateway.auth import operations
from services.gateway.auth.domain import AuthError
from services.gateway.auth.operations import SignedIn
from services.gateway.project.state import Project, ProjectTokens, keep_in_step


class ProjectDesk:
    def __init__(self, database: Database, project: Project, tokens: ProjectTokens) -> None:
        self._database = database
        self._project = project
        self._tokens = tokens

    async def sign_in(self, email: str, password: str) -> SignedIn:
        """Raises AuthError, ProjectUnavailable. A second factor of the project's cannot be shown here: no way in."""
        token, has_factor = await self._project.prove(email, password)
        if token is None:
            raise AuthError(400, "invalid_credentials", "Invalid login credentials")
        if has_factor:
            raise AuthError(403, "insufficient_aal", "This account has a second factor")
        identity = await self._tokens.verify(token)
        async with self._database.transaction() as conn:
            await keep_in_step(conn, identity)
            return await operations.start_session(conn, user_id=identity.user_id, method="password")
