"""The service as a library function."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, environment_without_ray, free_port

SCRIPT = """
import sys
import ray, requests
import transformers.modeling_utils  # its first import adds warning filters and an environment variable
from serve.launch import StartFailed, serving
from serve.settings import read_settings
from tests.process_state import unchanged

storage, port, other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
stages = []
settings = read_settings({"storage": storage, "port": port})
with unchanged(), serving(settings, lambda progress: stages.append(progress.stage)) as service:
    assert (service.url, service.model, service.is_trained) == (f"http://127.0.0.1:{port}", "tiny", False)
    assert requests.get(service.url + "/v1/models").json()["data"][0]["id"] == "tiny"
    for number, error, message in ((port, ValueError, "cannot listen"), (other, StartFailed, "already")):
        try:
            with serving(read_settings({"storage": storage, "port": number})):
                raise AssertionError("started twice")
        except error as found:
            assert message in str(found), found
    assert requests.get(service.url + "/healthz").ok
assert stages == ["ray", "start", "stop"], stages
assert not ray.is_initialized()
"""


def test_a_program_serves_a_model_and_nothing_is_printed(tmp_path: Path) -> None:
    """The service starts Ray, and stops it."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(free_port()), str(free_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment_without_ray())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
