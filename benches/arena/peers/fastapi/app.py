"""FastAPI as its users write it: a pydantic model and async handlers, for any ASGI server.

All handlers run on one event loop and none awaits, so each is a critical section without a lock:
the four totals always belong together. That holds only within one process, so there is one.
"""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class Event(BaseModel):
    """Strict, so that no number is read from a string and no string from a number."""

    model_config = ConfigDict(strict=True)

    user_id: str = Field(alias="userId", min_length=1, max_length=256)
    value: FiniteFloat


class Tally:
    """The totals since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.requests = 0
        self.sum = 0.0
        self.users = set()


# The challenge requires no content type.
app = FastAPI(openapi_url=None, strict_content_type=False)
tally = Tally()


@app.exception_handler(RequestValidationError)
async def refuse(_request: Request, _error: RequestValidationError) -> Response:
    """FastAPI's own response would be 422; the challenge requires 400."""
    return Response(status_code=400)


@app.post("/event")
async def event(received: Event) -> Response:
    tally.users.add(received.user_id)
    tally.sum += received.value
    tally.requests += 1
    return Response()


@app.get("/stats")
async def stats() -> dict[str, int | float]:
    return {
        "totalRequests": tally.requests,
        "uniqueUsers": len(tally.users),
        "sum": tally.sum,
        "avg": tally.sum / tally.requests if tally.requests else 0.0,
    }


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/reset")
async def reset() -> dict[str, str]:
    tally.reset()
    return {"status": "reset"}
