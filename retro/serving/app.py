"""The ASGI application: routes, guards, and what every failure looks like."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from retro import __version__
from retro.config.serving import ServeConfig
from retro.serving.admission import Admission
from retro.serving.answer import CompletionAnswer
from retro.serving.body import ClientGone, read_json_body
from retro.serving.completion_request import parse_completion_request
from retro.serving.completions import CompletionJob
from retro.serving.engine_thread import EngineThread
from retro.serving.errors import ApiError
from retro.serving.guards import HostGuard, Observer, SecurityHeaders
from retro.serving.metrics import CONTENT_TYPE, Metrics
from retro.serving.openapi import COMPLETION_ANSWER, COMPLETION_BODY, describe_answers, install_openapi
from retro.serving.page_files import page_routes
from retro.serving.served_model import ServedModel

_DESCRIPTION = "Text completion with retrieval: answers name the documents and texts that they were made with."


class Service:
    """One served model with its engine's thread, queue and metrics. `start` before, `stop` after use."""

    def __init__(self, model: ServedModel, config: ServeConfig) -> None:
        self.model, self.config = model, config
        self.metrics = Metrics()
        self.metrics.slots.set(model.slots)
        self.admission = Admission(model.slots, config.limits.max_queued)
        self.thread = EngineThread(model.build_engine, self.metrics.on_step, self.metrics.engine_failures.inc)

    def start(self) -> None:
        """Begin to generate."""
        self.thread.start()

    def drain(self) -> None:
        """Admit nothing more; what is inside goes on."""
        self.admission.closed = True

    def stop(self) -> None:
        """End the thread; requests inside fail with 503."""
        self.drain()
        self.thread.stop()

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self.thread.alive and not self.admission.closed


def build_app(service: Service) -> Any:
    """The ASGI application of a service."""
    config, limits, model = service.config, service.config.limits, service.model
    # No documentation pages: they load scripts from elsewhere.
    app = FastAPI(
        title="retro serve",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    @app.post(
        "/v1/completions",
        openapi_extra={"requestBody": COMPLETION_BODY},
        responses=describe_answers(400, 404, 408, 413, 415, 429, 500, 503, 504, ok=COMPLETION_ANSWER),
    )
    async def completions(request: Request) -> Response:
        """Continue prompts."""
        body = await read_json_body(request, limits.max_body_bytes, limits.body_timeout)
        job = CompletionJob(
            parse_completion_request(body), model, service.thread, service.admission, service.metrics, limits
        )
        return CompletionAnswer(job, limits.request_timeout)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [model.describe_model(limits)]}

    @app.get("/v1/models/{name:path}", responses=describe_answers(404))
    async def one_model(name: str) -> dict[str, Any]:
        """The model of that name."""
        if name != model.name:
            raise ApiError(404, f"model: {name[:60]!a} is not served", param="model", code="model_not_found")
        return model.describe_model(limits)

    @app.get("/health", responses=describe_answers(503))
    async def health() -> dict[str, str]:
        """Whether the server lives: else it should be started anew."""
        if not service.thread.alive and not service.admission.closed:
            raise ApiError(503, "the engine has stopped", code="engine_stopped")
        return {"status": "ok"}

    @app.get("/ready", responses=describe_answers(503))
    async def ready() -> dict[str, str]:
        """Whether requests should be sent here."""
        if not service.ready:
            raise ApiError(503, "the server is shutting down or its engine has stopped", code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})

    if config.page:
        app.router.routes.extend(page_routes())
    install_openapi(app)
    _install_errors(app)
    paths = [str(getattr(route, "path", "")) for route in app.routes]
    wrapped: Any = app
    if config.allowed_origins:
        wrapped = CORSMiddleware(
            wrapped,
            allow_origins=[origin.lower() for origin in config.allowed_origins],  # as browsers write them
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id"],
        )
    wrapped = HostGuard(wrapped, [*config.allowed_hosts, config.host], config.allowed_origins)
    wrapped = SecurityHeaders(wrapped, shared=bool(config.allowed_origins))
    return Observer(wrapped, service.metrics, paths)


def _install_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = ascii(request.url.path)[1:-1][:100]
        message = {404: f"{path}: there is nothing here", 405: f"{path}: not with {request.method}"}
        found = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
        return JSONResponse(found.body(), found.status, dict(error.headers or {}))

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it
