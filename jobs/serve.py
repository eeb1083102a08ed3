"""Serve a model: chat about images and videos, pictures and videos from texts, through the OpenAI API.

Starts the graph of deployments on this machine, or on the cluster that RAY_ADDRESS names, and a page to try it. Ends
with Ctrl-C or SIGTERM: what is in work is finished, or given back to the queue of jobs.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError
from videolavit.records.storage import absolute_url

from .common import JobParser, console, fail, pick, ray_runtime, user_errors

KEYS = "keys.json"
MARGIN = 15.0
"""Seconds beyond the drain that Serve may take to end."""


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until it is told to end; exits with 2 on a user's mistake."""
    from serve.keys import add_key, read_keys
    from serve.settings import ServeSettings

    parser = JobParser("serve", __doc__)
    parser.add_class_arguments(ServeSettings)
    parser.add_argument("--new_key", type=str | None, help="make an API key of that name, print it, and end")
    options = parser.parse(argv)
    with user_errors(ValueError, ModelError, OSError):
        if options.new_key is not None:
            file = options["keys"] or KEYS
            secret = add_key(file, options.new_key)
            console.print(f"added {options.new_key} to {file}; the key is shown this once:", markup=False)
            Console(highlight=False).print(secret, soft_wrap=True, markup=False)
            return
        settings = pick(ServeSettings, options)
        if settings.keys is not None:
            read_keys(settings.keys)
        start = ModelFolder(settings.model)
        settings = _located(settings)
        _check_port(settings.host, settings.port)
    if not start.is_trained:
        remark = f"[yellow]the weights of {escape(settings.model)} are untrained: what comes out means nothing[/]"
        console.print(remark, soft_wrap=True)
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray's processes step back for all others
    with ray_runtime():
        _serve(settings)


def _located(settings: Any) -> Any:
    """The settings with whole paths: the service's processes may have another working directory."""
    model = absolute_url(settings.model) if Path(settings.model).is_dir() else settings.model
    keys = None if settings.keys is None else absolute_url(settings.keys)
    return replace(settings, model=model, keys=keys, storage=absolute_url(settings.storage))


def _check_port(host: str, port: int) -> None:
    """Raises ValueError if somebody else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; name another --port") from None


def _serve(settings: Any) -> None:
    """Starts the service, tells where it is, and waits for the end."""
    from ray import serve
    from ray.exceptions import RayError

    from serve.application import NAME, application, problems

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with console.status("loading the model"):
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port})
            serve.run(application(settings), name=NAME, route_prefix="/", blocking=False)
        except (RuntimeError, RayError) as error:
            found = problems() or [str(error).splitlines()[0]]
            serve.shutdown()
            fail("the service could not be started: " + "; ".join(found))
    url = f"http://{settings.host}:{settings.port}"
    told = f"{settings.model_name} is served at {url} (documentation: {url}/docs)"
    Console(highlight=False).print(told, soft_wrap=True, markup=False)
    ended.wait()
    with console.status("ending: what is in work is finished, or given back to the queue"):
        serve.delete(NAME, _blocking=False)
        given_up = time.monotonic() + settings.drain_seconds + MARGIN
        while NAME in serve.status().applications and time.monotonic() < given_up:
            time.sleep(0.2)
    if "RAY_ADDRESS" not in os.environ:  # else others may serve there too
        serve.shutdown()


if __name__ == "__main__":
    main()
