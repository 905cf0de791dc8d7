"""The application answers requests of browsers with pages that are made here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ckpt_transport.dashboard import pictures, view
from ckpt_transport.dashboard.fleet_watch import FleetWatch, Look
from ckpt_transport.dashboard.guard import Guard, is_own
from ckpt_transport.dashboard.rollback import NotAllowedError, Rollback
from ckpt_transport.history import History, PastUpdate
from ckpt_transport.release import RELEASE

MOST_BODY = 4096
"""Bytes of a form."""
STATIC = Path(__file__).parent / "static"


def make_app(watch: FleetWatch, history: str, rollback: Rollback | None, *, local: bool) -> Starlette:
    """Make the application.

    Args:
        watch: asks the fleet.
        history: the file that updates are kept in; empty where they are not.
        rollback: rolls the fleet back; None where the page only shows.
        local: it listens on this host only.
    """
    pages = Pages(watch, history, rollback)
    routes = [
        Route("/", pages.fleet),
        Route("/live", pages.live),
        Route("/updates/{update:path}", pages.update),
        Route("/rollback", pages.ask_rollback, methods=["GET"]),
        Route("/rollback", pages.do_rollback, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    failures: Any = {HTTPException: pages.failure}
    return Starlette(routes=routes, middleware=[Middleware(Guard, local=local)], exception_handlers=failures)


class Pages:
    """Makes the pages. Those that ask the fleet or read the history are made in threads."""

    def __init__(self, watch: FleetWatch, history: str, rollback: Rollback | None) -> None:
        self._watch, self._rollback = watch, rollback
        self._history = History(Path(history)) if history else None
        self._templates = Environment(
            loader=PackageLoader("ckpt_transport.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(view.FILTERS)
        self._templates.globals.update(release=RELEASE, pictures=pictures, history=history)

    def _page(self, template: str, values: Mapping[str, object], status: int = 200) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(values), status)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def fleet(self, request: Request) -> Response:
        """The whole fleet, and its last updates."""
        return self._page("fleet.html", self._state())

    def live(self, request: Request) -> Response:
        """What of that page changes while somebody looks at it."""
        return self._page("live.html", self._state())

    def _state(self) -> dict[str, object]:
        look = self._watch.look()
        past, unread = self._past()
        return {
            "now": time.time(),
            "members": view.member_rows(look),
            "versions": view.versions(look),
            "running": view.running(look),
            "back": view.can_go_back(look) if self._rollback is not None else "",
            "rollback": self._rollback,
            "past": past,
            "unread": unread,
        }

    def _past(self) -> tuple[Sequence[PastUpdate], str]:
        """The updates that are kept, and why they cannot be read."""
        if self._history is None:
            return (), ""
        try:
            return self._history.updates(), ""
        except OSError as error:
            return (), f"{error.strerror}: {error.filename}"

    def update(self, request: Request) -> Response:
        """One update that has ended."""
        name = request.path_params["update"]
        try:
            past = None if self._history is None else self._history.find(name)
        except OSError as error:
            raise HTTPException(500, f"the history cannot be read: {error.strerror}") from error
        if past is None:
            raise HTTPException(404, f"no update '{name}' is among the last hundred of this history")
        return self._page("update.html", {"past": past})

    def failure(self, request: Request, error: Exception) -> Response:
        """Why there is no such page."""
        assert isinstance(error, HTTPException)
        return self._page("failure.html", {"reason": error.detail}, error.status_code)

    # -- what is done -------------------------------------------------------------------------------------------------

    def ask_rollback(self, request: Request) -> Response:
        """The form, which says what would be done."""
        return self._form(self._allowed())

    async def do_rollback(self, request: Request) -> Response:
        """Do what a form asks for."""
        rollback = self._allowed()
        if not is_own(request):
            raise HTTPException(403, "this form was sent by a page of another site")
        given = await _fields(request)
        try:
            await run_in_threadpool(rollback.run, given.get("form", ""), given.get("token", ""), self._shown)
        except NotAllowedError as error:
            return await run_in_threadpool(self._form, rollback, error.status, str(error))
        return RedirectResponse("/#rollback", 303)

    def _allowed(self) -> Rollback:
        if self._rollback is None:
            raise HTTPException(
                403, "this page only shows; start the dashboard with --token-file to roll back from here"
            )
        return self._rollback

    def _form(self, rollback: Rollback, status: int = 200, objection: str = "") -> Response:
        look = self._watch.look()
        values = {
            "objection": objection,
            "members": view.member_rows(look),
            "back": view.can_go_back(look),
            "form": rollback.form(_seen(look)),
        }
        return self._page("rollback.html", values, status)

    def _shown(self) -> object:
        return _seen(self._watch.look())


def _seen(look: Look) -> tuple[tuple[str, str, str], ...]:
    """What of a fleet a form for a rollback has shown."""
    return tuple((row.place, row.version, row.previous) for row in view.member_rows(look))


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        HTTPException: it is larger than ours is.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise HTTPException(413, f"a form has at most {MOST_BODY} bytes")
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
