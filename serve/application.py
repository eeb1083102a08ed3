"""The wiring: settings in, a Serve application out. `serve deploy` and `videolavit serve` use the same builder."""

import logging
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus, LoggingConfig

from videolavit.models.folder import ModelFolder

from .api import make_app
from .deployments import KeyframeDetokenizer, LanguageModel, VideoDetokenizer, VisualTokenizer
from .graph import Graph
from .middleware import AdmissionMiddleware, RequestMiddleware
from .service import Service
from .settings import Replicas, ServeSettings, read_settings

NAME = "videolavit"
"""Of the application."""

CONSTRUCTOR_RETRIES = 3
"""A model that cannot be loaded is not tried for ever."""


@serve.ingress()
class Ingress:
    """HTTP in front, and the worker of the video jobs."""

    def __init__(
        self,
        settings: ServeSettings,
        visual_tokenizer: DeploymentHandle,
        language_model: DeploymentHandle,
        keyframe_detokenizer: DeploymentHandle,
        video_detokenizer: DeploymentHandle,
    ) -> None:
        _log_to_stderr()
        parts = (visual_tokenizer, language_model, keyframe_detokenizer, video_detokenizer)
        self.service = Service(settings, Graph(*parts, ModelFolder(settings.model)))

    def __serve_build_asgi_app__(self) -> Any:
        app: FastAPI = make_app(self.service)
        limits = self.service.settings.limits
        app.add_middleware(AdmissionMiddleware, gate=self.service.gate)
        app.add_middleware(RequestMiddleware, max_bytes=limits.body_megabytes << 20, metrics=self.service.metrics)
        return app


def application(settings: ServeSettings) -> Application:
    """The graph: Ingress -> VisualTokenizer, LanguageModel -> KeyframeDetokenizer -> VideoDetokenizer."""
    parts = [
        _deployment(kind, settings, copies, ongoing=4 * copies.together).bind(settings)
        for kind, copies in (
            (VisualTokenizer, settings.visual_tokenizer),
            (LanguageModel, settings.language_model),
            (KeyframeDetokenizer, settings.keyframe_detokenizer),
            (VideoDetokenizer, settings.video_detokenizer),
        )
    ]
    # beyond its own gate, which answers 429, the ingress has room for all who look at their jobs
    ingress = _deployment(Ingress, settings, settings.ingress, ongoing=16 * settings.limits.in_flight)
    return ingress.bind(settings, *parts)


def build(arguments: dict[str, Any]) -> Application:
    """What `serve/config.yaml` names. Raises ValueError for settings that are none, or depend on the node."""
    settings = read_settings(arguments)
    if "://" not in settings.storage and not Path(settings.storage).is_absolute():
        raise ValueError(f"storage: {settings.storage} is another folder on each node; give a whole path")
    return application(settings)


def problems() -> list[str]:
    """Why deployments are not healthy: the last line of what each says."""
    found = serve.status().applications.get(NAME)
    states = {} if found is None else found.deployments
    return [
        f"{name}: {state.message.strip().splitlines()[-1].strip()}"
        for name, state in states.items()
        if state.status != DeploymentStatus.HEALTHY and state.message.strip()
    ]


def _deployment(kind: Any, settings: ServeSettings, copies: Replicas, ongoing: int) -> Any:
    """A deployment as Serve wants it. Its batches need so many requests to be with it at once."""
    least, most = copies.copies
    scale: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=copies.together
            )
        }
    return serve.deployment(
        kind,
        name=kind.__name__,
        max_ongoing_requests=ongoing,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_timeout_s=60,
        # the ingress has a line of its own for each request
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        ray_actor_options={"num_cpus": copies.num_cpus, "num_gpus": copies.num_gpus},
        **scale,
    )


def _log_to_stderr() -> None:
    """The service's lines, beside Serve's own."""
    log = logging.getLogger("videolavit.serve")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
