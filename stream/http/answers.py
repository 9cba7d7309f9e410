"""Answers that are not 2xx: one shape for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from schemas.dead_letter import Message


class Complaint(msgspec.Struct):
    path: str
    keyword: str
    message: str


class Problem(msgspec.Struct):
    code: str
    message: str
    messages: list[Complaint]


class Error(msgspec.Struct):
    """Every answer that is not 2xx or 3xx."""

    error: Problem


class Json(Response):
    """A JSON answer encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


class Refused(Exception):
    """The request gets `status` and a body that names what is wrong; `retry_after_s` tells a client to come back."""

    def __init__(self, status: int, code: str, message: str, messages: Sequence[Message] = (),
                 retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.messages, self.retry_after_s = tuple(messages), retry_after_s

    def response(self) -> Json:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="the key as the user name"'
        error = {"code": self.code, "message": self.message, "messages": self.messages}
        return Json({"error": error}, status_code=self.status, headers=headers)


def invalid(path: str, keyword: str, message: str) -> Refused:
    """A 400 with one complaint."""
    return Refused(400, "invalid_request", message, [Message(path=path, keyword=keyword, message=message)])
