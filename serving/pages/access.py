"""Who looks at the pages, what of a user may stand in an address, and which forms are ours."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.fernet import Fernet, InvalidToken
from itsdangerous import BadData, URLSafeTimedSerializer

_FORM_SECONDS = 12 * 3600
"""After so long an open page's forms have to be loaded anew."""


@dataclass(frozen=True)
class Person:
    """Who is signed in, and whether this person may move a release."""

    name: str
    may_release: bool


class Seal:
    """What the server alone can make: handles of users, tokens of forms, notes from one page to the next.

    A user is named in an address by a handle, the pseudonym encrypted anew each time: addresses end up in access logs,
    and logs hold neither ids nor pseudonyms.

    Args:
        secret: of the server; the same for all of its processes, so that a page of one is understood by another.
    """

    def __init__(self, secret: str) -> None:
        key = hashlib.sha256(b"audiorec pages: users" + secret.encode()).digest()
        self._users = Fernet(base64.urlsafe_b64encode(key))
        self._forms = URLSafeTimedSerializer(secret, salt="audiorec pages: forms")
        self._notes = URLSafeTimedSerializer(secret, salt="audiorec pages: notes")

    def handle(self, user: str) -> str:
        return self._users.encrypt(user.encode()).decode()

    def user(self, handle: str) -> str | None:
        """The pseudonym behind a handle; None if it is none of ours."""
        try:
            return self._users.decrypt(handle.encode()).decode()
        except InvalidToken:
            return None

    def form_token(self, person: Person) -> str:
        """Goes into every form that changes or asks something by POST."""
        return str(self._forms.dumps(person.name))

    def is_from_a_form(self, token: str, person: Person) -> bool:
        """Whether a token was made for this person, not long ago."""
        try:
            return bool(self._forms.loads(token, max_age=_FORM_SECONDS) == person.name)
        except BadData:
            return False

    def note(self, text: str) -> str:
        """A text that may travel in an address and come back as what we said."""
        return str(self._notes.dumps(text))

    def read_note(self, token: str) -> str | None:
        try:
            return str(self._notes.loads(token, max_age=_FORM_SECONDS))
        except BadData:
            return None
