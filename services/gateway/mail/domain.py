"""The letters the product writes. Pure; what is in them is data, never markup."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One kind of mail: what it is about, what it asks for, and what its button says (if it has one).

    Subject and lead may name values of the content: `{metric}`.
    """

    subject: str
    lead: str
    button: str = ""

    def filled(self, content: Mapping[str, Any]) -> Self:
        return replace(self, subject=self.subject.format_map(content), lead=self.lead.format_map(content))


LETTERS: Final[Mapping[str, Letter]] = {
    "confirmation": Letter(
        subject="Confirm your e-mail address",
        lead="Welcome to Venture Companion. Confirm that this address is yours to start.",
        button="Confirm address",
    ),
    "invite": Letter(
        subject="You have been invited",
        lead="You have been invited to Venture Companion. Accept to create your account.",
        button="Accept invitation",
    ),
    "recovery": Letter(
        subject="Reset your password",
        lead="Someone asked to reset the password of your account. If it was not you, ignore this mail.",
        button="Reset password",
    ),
    "magiclink": Letter(
        subject="Your sign-in link",
        lead="Use this to sign in. If you did not ask for it, ignore this mail.",
        button="Sign in",
    ),
    "email_change_new": Letter(
        subject="Confirm your new e-mail address",
        lead="Confirm that your account is to use this address from now on.",
        button="Confirm new address",
    ),
    "email_change_current": Letter(
        subject="Confirm the change of your e-mail address",
        lead="Someone asked to move your account to another address. If it was not you, change your password.",
        button="Confirm change",
    ),
    "reauthentication": Letter(
        subject="Your confirmation code",
        lead="Enter this code to confirm that it is you.",
    ),
    "already_registered": Letter(
        subject="You already have an account",
        lead="Someone tried to sign up with your address. You have an account: sign in, or reset your password.",
    ),
    "payment_failed": Letter(
        subject="Your payment failed",
        lead="We could not collect the payment for your plan. Pay, or use another card, to keep it.",
        button="Pay now",
    ),
    "usage_near_limit": Letter(
        subject="You have used {percent} % of your {metric}",
        lead="You have used {percent} % of the {metric} that your plan includes until {resets_on}.",
        button="See plans",
    ),
    "usage_at_limit": Letter(
        subject="You have used all of your {metric}",
        lead="You have used the {metric} that your plan includes. There will be more on {resets_on}, or with a "
        "larger plan at once.",
        button="See plans",
    ),
    "password_changed": Letter(
        subject="Your password was changed",
        lead="The password of your account was changed, and other devices were signed out. "
        "If it was not you, reset your password now.",
    ),
    "email_changed": Letter(
        subject="Your e-mail address was changed",
        lead="Your account now uses another address. If it was not you, contact support.",
    ),
}
