"""Errors as OpenAI's clients know them: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

# One name for each status, so that the official client's exceptions and its `code` say the same.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "unprocessable_error",
    429: "rate_limit_error",
}


class Refusal(Exception):
    """A request that gets an error. `message` says what was wrong and what to do, and repeats
    nothing of the request's texts: it may be logged."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error")
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }

    def response(self) -> JSONResponse:
        headers = {"cache-control": "no-store"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def invalid(param: str | None, message: str) -> Refusal:
    return Refusal(400, "invalid_value", message, param)


def explain_validation(error: ValidationError) -> Refusal:
    """The first mistake by its place. Never by its value: that may be an image or a patient's
    text."""
    errors = error.errors(include_input=False, include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    place = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("function-", "tagged-"))
    )
    if first["type"] == "extra_forbidden":
        return Refusal(
            400, "unknown_parameter", f"'{place[:80]}' is not supported here", place[:80]
        )
    reason = str(first["msg"]).removeprefix("Value error, ")
    return invalid(place[:80] or None, f"{place[:80]}: {reason}" if place else reason)
