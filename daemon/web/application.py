"""The worklist as a web application: pages, pictures and JSON, all read only.

Owns the routes. What a line or page says is ``daemon.worklist``; who may see it is
``daemon.web.protection``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from daemon import __version__
from daemon.config import Config
from daemon.metrics import metrics_text
from daemon.role import now_utc
from daemon.status import read_status
from daemon.web.health import read_health
from daemon.web.protection import Protected
from daemon.web.rendering import STATIC_FOLDER, Pages
from daemon.web.source import DatabaseSource
from daemon.web.wording import machine_time
from daemon.worklist.documents import read_capture, read_reports
from daemon.worklist.flags import FlagValues
from daemon.worklist.lines import DEFAULT_LIMIT, MOST_STUDIES, Worklist, read_worklist
from daemon.worklist.study_page import StudyPage, read_study_page
from dicom_io.errors import UnreadableInstance
from storage.errors import DatabaseMissing, NotFound, StorageError

PRELIMINARY = "AI results - preliminary, not verified by a physician"
REFRESH_SECONDS = 15

Search = Annotated[str, Query(alias="q", max_length=64)]
FlagKey = Annotated[str, Query(alias="flag", max_length=32)]
Limit = Annotated[int, Query(ge=1, le=MOST_STUDIES)]
StudyUID = Annotated[str, Path(max_length=64, pattern=r"^[0-9.]+$")]
_METHODS = ["GET", "HEAD"]


def create_app(config: Config) -> FastAPI:
    """Return the application of one installation; it works before the database exists."""
    app = FastAPI(title="medimgd", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Protected, section=config.web)
    site = Site(config)
    _add_pages(app, site)
    _add_data(app, site)
    _add_operations(app, site)
    _add_error_pages(app, site)
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    return app


class Site:
    """What the routes share: configuration, templates and the database.

    Parameters
    ----------
    config : Config
        Of the installation.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.source = DatabaseSource(config.database_path)
        self._pages = Pages()

    def page(self, name: str, status: int = 200, **values: object) -> HTMLResponse:
        """Render one page."""
        html = self._pages.render(
            name,
            preliminary=PRELIMINARY,
            version=__version__,
            refresh_seconds=REFRESH_SECONDS,
            most_studies=MOST_STUDIES,
            **values,
        )
        return HTMLResponse(html, status)

    def worklist(self, search: str, flag: str, limit: int) -> Worklist:
        """Read the worklist.

        Raises
        ------
        HTTPException
            There is no such flag.
        """
        wanted = FlagValues.from_key(flag) if flag else None
        if flag and wanted is None:
            known = ", ".join(one.key for one in FlagValues)
            raise HTTPException(422, f"flag: one of {known}")
        return read_worklist(
            self.source.open(), self.config, search=search, flag=wanted, limit=limit
        )

    def study(self, study_instance_uid: str) -> StudyPage:
        """Read one study."""
        return read_study_page(self.source.open(), self.config, study_instance_uid)


def _add_pages(app: FastAPI, site: Site) -> None:
    @app.api_route("/", methods=_METHODS)
    def worklist_page(q: Search = "", flag: FlagKey = "", limit: Limit = DEFAULT_LIMIT) -> Response:
        values: dict[str, Any] = {"search": q, "flag_key": flag, "limit": limit}
        try:
            worklist = site.worklist(q, flag, limit)
        except DatabaseMissing:
            return site.page("nothing", **values)
        attention = read_status(site.config, now_utc()).attention
        return site.page("worklist", worklist=worklist, attention=attention, **values)

    @app.api_route("/studies/{uid}", methods=_METHODS)
    def study_page(uid: StudyUID) -> Response:
        page = site.study(uid)
        reports = read_reports(site.source.open(), page)
        return site.page("study", page=page, line=page.line, reports=reports)

    @app.api_route("/studies/{uid}/capture/{document_id}.png", methods=_METHODS)
    def capture(uid: StudyUID, document_id: Annotated[int, Path(ge=1, lt=2**63)]) -> Response:
        png = read_capture(site.source.open(), uid, document_id)
        return Response(png, media_type="image/png")


def _add_data(app: FastAPI, site: Site) -> None:
    @app.api_route("/api/studies", methods=_METHODS)
    def studies(q: Search = "", flag: FlagKey = "", limit: Limit = DEFAULT_LIMIT) -> Response:
        worklist = site.worklist(q, flag, limit)
        return _json(
            {
                "notice": PRELIMINARY,
                "read_at": machine_time(now_utc()),
                "counts": {one.key: worklist.counts.get(one, 0) for one in FlagValues},
                "matching": worklist.matching,
                "judged": worklist.judged,
                "is_complete": worklist.is_complete,
                "studies": worklist.lines,
            }
        )

    @app.api_route("/api/studies/{uid}", methods=_METHODS)
    def study(uid: StudyUID) -> Response:
        page = site.study(uid)
        reports = read_reports(site.source.open(), page)
        return _json({"notice": PRELIMINARY, **_shallow(page), "reports": reports})


def _add_operations(app: FastAPI, site: Site) -> None:
    @app.api_route("/health", methods=_METHODS)
    def health() -> Response:
        judged = read_health(site.config)
        return _json({"live": True, **asdict(judged)}, 200 if judged.ready else 503)

    @app.api_route("/health/live", methods=_METHODS)
    def live() -> Response:
        return _json({"live": True})

    @app.api_route("/metrics", methods=_METHODS)
    def metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(metrics_text(site.config), media_type=kind)


def _add_error_pages(app: FastAPI, site: Site) -> None:
    def answer(request: Request, status: int, headline: str, reason: str) -> Response:
        path = request.url.path
        if path.startswith("/api/"):
            return _json({"error": headline, "reason": reason}, status)
        if path.endswith(".png") or path.startswith("/static/"):
            return PlainTextResponse(f"{headline}\n", status)
        return site.page("failure", status, headline=headline, reason=reason)

    def handles(error: type[Exception]) -> Callable[[Any], Any]:
        return app.exception_handler(error)

    @handles(NotFound)
    def not_found(request: Request, error: NotFound) -> Response:
        return answer(request, 404, "No such study here", str(error))

    @handles(UnreadableInstance)
    def unreadable(request: Request, error: UnreadableInstance) -> Response:
        return answer(request, 500, "The stored object cannot be shown", str(error))

    @handles(StorageError)
    def unavailable(request: Request, error: StorageError) -> Response:
        return answer(request, 503, "The worklist cannot be read", str(error))

    @handles(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        # What was received is left out: it may be a name that was searched for.
        rules = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
        status = 404 if error.errors()[0]["loc"][0] == "path" else 422
        return answer(request, status, "This address is not understood", "; ".join(rules))

    @handles(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, "Nothing is shown here", error.detail)


def _shallow(page: StudyPage) -> dict[str, object]:
    return {name: getattr(page, name) for name in page.__slots__}


def _json(value: object, status: int = 200) -> JSONResponse:
    return JSONResponse(jsonable_encoder(value), status)
