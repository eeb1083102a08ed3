"""Readiness of a service, looked at from time to time, however many ask for it."""

import asyncio
import time
from collections.abc import Mapping

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentStatus
from sqlalchemy.exc import SQLAlchemyError

from .store import JobStore

READY_STATES = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)

EVERY, EVERY_IF_WELL = 1.0, 5.0
"""Interval at which deployments and job store are looked at, in seconds, and that while all is well: to ask Ray Serve
takes a tenth of a second of a core."""

STALE = 15.0
"""Age at which what was seen counts no more, in seconds."""


class HealthWatch:
    """Deployments and job store, as they were seen last.

    Attributes:
        deployments: State of each deployment of the application, by name; empty before they are known.
        store_answers: True if jobs can be stored.
    """

    def __init__(self, store: JobStore) -> None:
        self._store, self._seen = store, -STALE
        self.deployments: Mapping[str, str] = {}
        self.store_answers = False

    @property
    def is_ready(self) -> bool:
        """True if all deployments and the job store were well a moment ago."""
        is_fresh = time.monotonic() - self._seen < STALE
        states = self.deployments.values()
        return is_fresh and self.store_answers and bool(states) and all(state in READY_STATES for state in states)

    async def follow(self) -> None:
        """Looks again and again, until this is cancelled."""
        while True:
            self.deployments, self.store_answers = await asyncio.gather(
                asyncio.to_thread(_deployments), asyncio.to_thread(self._check_store)
            )
            self._seen = time.monotonic()
            await asyncio.sleep(EVERY_IF_WELL if self.is_ready else EVERY)

    def _check_store(self) -> bool:
        try:
            self._store.check()
        except SQLAlchemyError:
            return False
        return True


def _deployments() -> dict[str, str]:
    """State of each deployment of this application, by name; empty if Serve does not answer."""
    try:
        application = serve.get_replica_context().app_name
        found = serve.status().applications.get(application)
    except (RayServeException, RayError, RuntimeError):
        return {}
    return {} if found is None else {name: state.status.value for name, state in found.deployments.items()}
