"""Serve application, built from settings for `videolavit serve` and for `serve deploy`."""

from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus, LoggingConfig

from videolavit.generation.settings import GenerateSettings, generation_defaults
from videolavit.models.folder import ModelFolder

from .api import add_middleware, make_app
from .deployments import (
    KeyframeDetokenizerDeployment,
    LanguageModelDeployment,
    VideoDetokenizerDeployment,
    VisualTokenizerDeployment,
)
from .graph import Graph
from .logs import start_log
from .service import Service
from .settings import Replicas, ServeSettings, read_settings
from .storage import check_sqlite

APPLICATION_NAME = "videolavit"
"""Name of the application."""

CONSTRUCTOR_RETRIES = 3
"""Number of times that Serve tries to start a replica, so that a model which cannot be loaded is reported."""


@serve.ingress()
class Ingress:
    """Deployment with the HTTP API and the worker for video jobs."""

    def __init__(
        self,
        settings: ServeSettings,
        visual_tokenizer: DeploymentHandle,
        language_model: DeploymentHandle,
        keyframe_detokenizer: DeploymentHandle,
        video_detokenizer: DeploymentHandle,
        console: str | None,
    ) -> None:
        start_log(console)
        graph = Graph(
            visual_tokenizer, language_model, keyframe_detokenizer, video_detokenizer, ModelFolder(settings.model)
        )
        self.service = Service(settings, graph)

    async def drain(self, seconds: float) -> None:
        """Prepares the end of the service, while the other deployments still run. See `Service.drain`."""
        await self.service.drain(seconds)

    def __serve_build_asgi_app__(self) -> Any:
        app = make_app(self.service)
        add_middleware(app, self.service)
        return app


def application(settings: ServeSettings, console: str | None = None) -> Application:
    """Application graph: Ingress -> VisualTokenizer, LanguageModel -> KeyframeDetokenizer -> VideoDetokenizer.

    Args:
        console: Folder of `logs.log_lines`, to which an ingress on the same machine sends its log; None for none.
    """
    deployments = [
        _deployment(name, deployment, settings, replicas, max_ongoing=4 * replicas.largest_batch).bind(settings)
        for name, deployment, replicas in (
            ("VisualTokenizer", VisualTokenizerDeployment, settings.visual_tokenizer),
            ("LanguageModel", LanguageModelDeployment, settings.language_model),
            ("KeyframeDetokenizer", KeyframeDetokenizerDeployment, settings.keyframe_detokenizer),
            ("VideoDetokenizer", VideoDetokenizerDeployment, settings.video_detokenizer),
        )
    ]
    # more than its own limit, beyond which it answers 429, so that clients can still ask for the state of their jobs
    ingress = _deployment("Ingress", Ingress, settings, settings.ingress, max_ongoing=16 * settings.limits.in_flight)
    return ingress.bind(settings, *deployments, console)


def build(arguments: dict[str, Any]) -> Application:
    """Builder for `serve/config.yaml`. Raises ValueError or ModelError for what is invalid, and for relative paths."""
    suited = generation_defaults(ModelFolder(arguments.get("model", ServeSettings.model)), GenerateSettings)
    settings = read_settings(arguments | {"generation": suited | arguments.get("generation", {})})
    if "://" not in settings.storage and not Path(settings.storage).is_absolute():
        raise ValueError(f"storage: {settings.storage} is a different folder on each node; give an absolute path")
    nodes = len(ray.nodes()) if ray.is_initialized() else 1
    database = settings.database or f"sqlite:///{settings.storage}/jobs.sqlite"
    check_sqlite(database, min(settings.ingress.replica_range[1], nodes))
    return application(settings)


def unhealthy_deployments() -> list[str]:
    """Deployments that are not healthy, each with the last line of its message."""
    found = serve.status().applications.get(APPLICATION_NAME)
    states = {} if found is None else found.deployments
    return [
        f"{name}: {state.message.strip().splitlines()[-1].strip()}"
        for name, state in states.items()
        if state.status != DeploymentStatus.HEALTHY and state.message.strip()
    ]


def _deployment(name: str, deployment: Any, settings: ServeSettings, replicas: Replicas, max_ongoing: int) -> Any:
    """Serve deployment of a class. A replica needs several requests at once to fill its batches."""
    fewest, most = replicas.replica_range
    scale: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest, max_replicas=most, target_ongoing_requests=replicas.largest_batch
            )
        }
    return serve.deployment(
        deployment,
        name=name,
        max_ongoing_requests=max_ongoing,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_timeout_s=60,
        # the ingress logs each request itself
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        **scale,
    )
