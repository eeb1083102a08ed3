"""Service as a process of its own, as a user starts it."""

import contextlib
import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import psutil
import requests
import yaml
from PIL import Image

from serve.graph import Graph
from tests.conftest import ROOT, environment_without_ray, free_port, moving_texture, wait_for
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder

LOGS = (".err", ".out", ".log")

QUICK = {
    "keyframe_steps": 4,
    "video_steps": 3,
    "min_visual": 4,
    "max_visual": 6,
    "visual_guidance": 2.0,
    "motion_guidance": 2.0,
}
"""Sampler settings with which a video takes a second."""


@dataclass(eq=False)
class Running:
    """Running service.

    Args:
        url: Address of the service.
        storage: Folder of results and uploads.
        process: Process of the command.
        log: File of its output.
        secrets: API keys by the name of their owner.
    """

    url: str
    storage: Path
    process: "subprocess.Popen[bytes]"
    log: Path
    secrets: dict[str, str] = field(default_factory=dict)

    def client(self, owner: str | None = None, **options: Any) -> openai.OpenAI:
        """Official client with the key of an owner, and without retries."""
        key = self.secrets[owner] if owner else next(iter(self.secrets.values()), "none")
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 120} | options)

    def headers(self, owner: str | None = None) -> dict[str, str]:
        key = self.secrets[owner] if owner else next(iter(self.secrets.values()), None)
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers() | options.pop("headers", {}), timeout=60, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(
            self.url + path, headers=self.headers() | options.pop("headers", {}), timeout=90, **options
        )

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Replica processes of a deployment."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [
            process for process in family if _title(process).startswith(f"ray::ServeReplica:videolavit:{deployment}")
        ]

    def session(self) -> Path:
        """Folder of its Ray."""
        titles = " ".join(map(_title, psutil.Process(self.process.pid).children(recursive=True)))
        session = re.search(r"(/\S*/session_[\d_-]+)", titles)
        assert session is not None
        return Path(session[1])

    def log_lines(self) -> list[str]:
        """Log lines of all processes of the service."""
        files = [
            file for file in self.session().rglob("*") if file.is_file() and file.suffix in (".err", ".out", ".log")
        ]
        return [line for file in files for line in file.read_text(errors="replace").splitlines()]

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric."""
        wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + (f"{{{wanted}}}" if wanted else " ")):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def kill(self) -> None:
        """Kills all processes of the service at once, as a power failure would."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        for process in [psutil.Process(self.process.pid), *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)


def graph_without_deployments() -> Graph:
    """Graph of a service that accepts requests and jobs; what needs a deployment fails."""
    nothing: Any = SimpleNamespace(generate=None)
    return Graph(nothing, nothing, nothing, nothing, ModelFolder("tiny"))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def serving(folder: Path, keys: tuple[str, ...] = (), **settings: Any) -> Iterator[Running]:
    """Starts a service with the preset `tiny`, and with an API key for each name; jobs in its folder are continued."""
    port = free_port()
    values = {"model": "tiny", "storage": str(folder / "data"), "port": port, "generation": QUICK} | settings
    secrets = {}
    if keys:
        values["keys"] = str(folder / "keys.json")
        for name in keys:
            command = _serve("--new-key", name, "--keys", values["keys"])
            secrets[name] = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            _serve("--config", config), cwd=ROOT, stdout=output, stderr=output, env=environment_without_ray()
        )
    host = str(values.get("host", "127.0.0.1"))
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    running = Running(url, Path(str(values["storage"])), process, log, secrets)
    try:
        wait_for(lambda: process.poll() is not None or _is_ready(running.url), "the service is not ready")
        assert process.poll() is None, log.read_text()[-3000:]
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()


def _serve(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "jobs.serve", *map(str, arguments)]


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def picture(seed: int = 0, width: int = 96, height: int = 64) -> bytes:
    """PNG file with random pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def video(seconds: int = 3, seed: int = 0) -> bytes:
    """File in mp4 with moving texture."""
    file = io.BytesIO()
    write_mp4(moving_texture(12 * seconds, 96, 128, seed), file, 12)
    return file.getvalue()
