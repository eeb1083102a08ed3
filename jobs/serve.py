"""Serve a model: chat about images and videos, pictures and videos from texts, through the OpenAI API.

Starts the graph of deployments on this machine, or on the cluster that RAY_ADDRESS names, and a page to try it. Ends
with Ctrl-C or SIGTERM: what is in work is finished, or given back to the queue of jobs.
"""

import logging
import signal
import threading
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError

from .common import JobParser, console, pick, ray_runtime, user_errors

KEYS = "keys.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until it is told to end; exits with 2 on a user's mistake."""
    from serve.settings import ServeSettings

    parser = JobParser("serve", __doc__)
    parser.add_class_arguments(ServeSettings)
    parser.add_argument("--new-key", type=str | None, help="make an API key of that name, print it, and end")
    options = parser.parse(argv)
    with user_errors(ValueError, ModelError, OSError):
        if options.new_key is not None:
            _make_key(options.keys or KEYS, options.new_key)
            return
        settings = pick(ServeSettings, options)
        if not ModelFolder(settings.model).is_trained:
            console.print(f"[yellow]the weights of {settings.model} are untrained: what comes out means nothing[/]")
    with ray_runtime():
        _serve(settings)


def _make_key(file: str, name: str) -> None:
    from serve.keys import add_key

    secret = add_key(file, name)
    console.print(f"added {name} to {file}; the key is shown this once:")
    Console(highlight=False).print(secret, soft_wrap=True, markup=False)


def _serve(settings: Any) -> None:
    """Starts the service, tells where it is, and waits for the end."""
    from ray import serve

    from serve.application import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with console.status("loading the model"):
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(application(settings), name="videolavit", route_prefix="/", blocking=False)
    url = f"http://{settings.host}:{settings.port}"
    Console(highlight=False).print(
        f"{settings.model_name} is served at {url} (documentation: {url}/docs)", soft_wrap=True
    )
    ended.wait()
    with console.status("ending"):
        serve.shutdown()


if __name__ == "__main__":
    main()
