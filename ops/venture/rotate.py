"""`venture rotate`: new secrets and keys in the settings file, in the order in which nobody is locked out.

It writes the file and nothing else; `make up` (or Compose's `up`) restarts what the change touches.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from ops.failure import Failure
from ops.files import write_private
from ops.home import Home
from ops.stack import dotenv, keys
from ops.venture.database import audit
from ops.venture.desk import AsJson, Desk, DryRun, Yes

File = Annotated[Path | None, typer.Option(help="The settings file; where left out, the one of the stack beside us.")]
Finish = Annotated[bool, typer.Option("--finish", help="Second step: the old one stops being accepted.")]
_APPLY: Final = "`make up` applies it."


def commands() -> typer.Typer:
    app = typer.Typer(help="New secrets: jwt, service, webhook, api-keys.", no_args_is_help=True)
    app.command("jwt")(jwt)
    app.command("service")(service)
    app.command("webhook")(webhook)
    app.command("api-keys")(api_keys)
    return app


def jwt(
    *,
    publish: Annotated[bool, typer.Option("--publish", help="Accept a new key everywhere before any signs.")] = False,
    sign: Annotated[bool, typer.Option("--sign", help="After --publish: the new key signs.")] = False,
    finish: Finish = False,
    file: File = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """The key that signs access tokens. First a new one beside the old; an hour later, with --finish, without it.

    Several gateways do not restart at one moment, and who has not would refuse the new tokens: --publish, then --sign.
    """
    if publish + sign + finish > 1:
        raise Failure("One step at a time: --publish, --sign or --finish.")

    def change(values: Mapping[str, str]) -> dict[str, str]:
        current = json.loads(values.get("AUTH_SIGNING_KEYS") or "[]")
        if sign or finish:
            rotated = _without_the_old(current) if finish else _signed_by_the_last(current)
        else:
            new = json.loads(keys.signing_keys())
            rotated = [*current, *new] if publish else [*new, *current]
        return {"AUTH_SIGNING_KEYS": json.dumps(rotated)}

    after = "New tokens get the new key; `rotate jwt --finish` in an hour."
    if publish:
        after = "The old key signs on; `rotate jwt --sign` once every gateway knows the new one."
    if finish:
        after = "The old key is dropped."
    _rotate(Desk(as_json=as_json, dry_run=dry_run, yes=yes), "jwt", file, change, after)


def _without_the_old(current: Sequence[object]) -> Sequence[object]:
    if len(current) < 2:  # noqa: PLR2004 - the new one and the old
        raise Failure("There is no old key to drop.")
    return current[:1]


def _signed_by_the_last(current: Sequence[object]) -> Sequence[object]:
    """The first of the list signs; what was published last stands at its end."""
    if len(current) < 2:  # noqa: PLR2004 - the old one and the new
        raise Failure("There is no new key to sign with: `rotate jwt --publish` comes first.")
    return [current[-1], *current[:-1]]


def service(*, file: File = None, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """The secret of calls between services. Until all have restarted, calls between old and new answer 503."""
    _rotate(
        Desk(as_json=as_json, dry_run=dry_run, yes=yes),
        "service",
        file,
        lambda _: {"SERVICE_TOKEN_SECRET": keys.password()},
        "All services restart; calls between them fail for those seconds, and clients repeat them.",
    )


def webhook(
    new: Annotated[str, typer.Option("--new", help="Stripe's new secret, whsec_…; not with --finish.")] = "",
    *,
    old: Annotated[str, typer.Option("--old", help="With --finish: which one, where there are more than two.")] = "",
    finish: Finish = False,
    file: File = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """The webhook's secret: first new and old are accepted; once Stripe has dropped the old, --finish does, too."""
    if not finish and not new.startswith("whsec_"):
        raise Failure("Roll the secret at Stripe (Developers, Webhooks), and give the new one: --new whsec_…")

    def change(values: Mapping[str, str]) -> dict[str, str]:
        current = [one.strip() for one in values.get("STRIPE_WEBHOOK_SECRET", "").split(",") if one.strip()]
        gone = _to_drop(current, old) if finish else new
        kept = [one for one in current if one != gone]
        return {"STRIPE_WEBHOOK_SECRET": ",".join(kept if finish else [new, *kept])}

    after = "The old one is refused." if finish else "Both are accepted; `rotate webhook --finish` in a day."
    _rotate(Desk(as_json=as_json, dry_run=dry_run, yes=yes), "webhook", file, change, after)


def _to_drop(current: Sequence[str], old: str) -> str:
    """The list also holds the secrets of other destinations, which nobody has rolled."""
    if len(current) < 2:  # noqa: PLR2004 - the new one and the old
        raise Failure("There is no old secret to drop.")
    if not old and len(current) > 2:  # noqa: PLR2004
        raise Failure(f"{len(current)} secrets are accepted: say which one is to go, --old whsec_…")
    if old and old not in current:
        raise Failure("The secret of --old is not among those that are accepted.")
    return old or current[1]


def api_keys(*, file: File = None, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """The secret of the anon and service-role keys, and both keys. Frontends need the new anon key at once."""

    def change(_: Mapping[str, str]) -> dict[str, str]:
        secret = keys.password()
        return {
            "SUPABASE_JWT_SECRET": secret,
            "NEXT_PUBLIC_SUPABASE_ANON_KEY": keys.api_key("anon", secret),
            "SUPABASE_SERVICE_ROLE_KEY": keys.api_key("service_role", secret),
        }

    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    _rotate(desk, "api-keys", file, change, "Give the new anon key to the frontend; the old ones end with the restart.")


def _rotate(
    desk: Desk, what: str, file: Path | None, change: Callable[[Mapping[str, str]], dict[str, str]], after: str
) -> None:
    path = file or Home.of().dotenv
    if not path.exists():
        raise Failure(f"There is no settings file {path}.")
    text = path.read_text()
    changed = change(dotenv.parse(text))
    desk.confirm(f"Rotate {what} in {path}?")
    if not desk.dry_run:
        audit(desk, "rotated", subject=what, after={"settings": sorted(changed)})
        write_private(path, dotenv.replace(text, changed))
    desk.report(f"{', '.join(sorted(changed))} changed in {path}. {after} {_APPLY}", {"settings": sorted(changed)})
