"""Serve a model through the OpenAI API: chat about images and videos, and image and video generation.

Starts the deployments on this machine, or on the cluster that RAY_ADDRESS names, with a web page to try them. Ends with
Ctrl-C or SIGTERM: requests in flight are finished, and video jobs in progress return to the queue.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from videolavit.generation.settings import GenerateSettings
from videolavit.models.network import ModelError
from videolavit.progress import Progress

from .common import INTERRUPTED, JobParser, console, foreign, pick, user_errors
from .models import parse_for_model

if TYPE_CHECKING:
    from serve.settings import ServeSettings

KEYS = "keys.json"

out = Console(highlight=False)
"""Standard output, for keys and the address of the service."""


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until a signal ends it; exits with 2 on a user's mistake."""
    from serve.keys import add_key
    from serve.settings import ServeSettings

    parser = JobParser("serve", __doc__)
    parser.add_class_arguments(ServeSettings)
    parser.add_argument("--new_key", type=str | None, help="name of an API key to create; prints the key and exits")
    options = parse_for_model(parser, argv, GenerateSettings, "generation.")
    with user_errors(ValueError, ModelError, OSError):
        if options.new_key is None:
            _serve(pick(ServeSettings, options))
            return
        file = options["keys"] or KEYS
        secret = add_key(file, options.new_key)
        console.print(foreign(f"added {options.new_key} to {file}; the key is shown only once:"))
        out.print(foreign(secret), soft_wrap=True)


def _serve(settings: "ServeSettings") -> None:
    """Serves until a signal comes."""
    from serve.launch import StartFailed, serving  # not before the settings are checked: this loads all libraries

    ended = threading.Event()

    def end(*_: object) -> None:
        if ended.is_set():
            sys.exit(INTERRUPTED)  # a second signal does not wait
        ended.set()

    def on_progress(progress: Progress) -> None:
        status.update(foreign(progress.message))
        if progress.stage == "start":  # Ray, which is up by now, has set handlers of its own
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, end)

    with (
        user_errors(StartFailed),
        console.status("checking the settings") as status,
        serving(settings, on_progress, lambda line: console.print(foreign(line), soft_wrap=True)) as service,
    ):
        status.stop()
        console.print(foreign(service.sandbox), soft_wrap=True)
        if not service.is_trained:
            remark = f"the weights of {service.model} are untrained: it generates noise"
            console.print(foreign(remark, "yellow"), soft_wrap=True)
        line = f"{service.model} is served at {service.url} (documentation: {service.url}/docs)"
        out.print(foreign(line), soft_wrap=True)
        ended.wait()
        status.start()


if __name__ == "__main__":
    main()
