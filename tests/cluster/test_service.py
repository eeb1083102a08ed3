"""A service over two hosts: one with a replica of the language model is cut off, and requests are still answered."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import QUICK_HEALTH, Cluster, Host, Network, network
from tests.conftest import wait_for

PORT = 8000
IN_A_ROW = 3
"""Answers in a row that count as a service that works again."""

ASK = """
import sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=20).status)
"""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


def is_answered(head: Host, path: str, body: object = None) -> bool:
    """True if a request on the head is answered with success; false after a pause if not."""
    words = [sys.executable, "-c", ASK, f"http://127.0.0.1:{PORT}{path}", json.dumps(body) if body else ""]
    if head.output(words) == "200":
        return True
    time.sleep(1.0)
    return False


def test_a_service_answers_while_the_host_of_a_replica_is_cut_off(hosts: Network, tmp_path: Path) -> None:
    cluster = Cluster(hosts, **QUICK_HEALTH)
    nodes = [cluster.add(cores=3) for _ in range(2)]
    settings = {"model": "tiny", "port": PORT, "storage": str(tmp_path / "data"), "language_model": {"min_replicas": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings | {"video_detokenizer": {"min_replicas": 1}}))
    job = cluster.start("serve", "--config", tmp_path / "config.yaml")
    job.wait_until(lambda: is_answered(cluster.head, "/readyz"), "the service is not ready")
    question = {"model": "tiny", "messages": [{"role": "user", "content": "What moves?"}], "max_tokens": 4}

    def answers() -> bool:
        return all(is_answered(cluster.head, "/v1/chat/completions", question) for _ in range(IN_A_ROW))

    assert answers()
    assert all(node.processes("ServeReplica:videolavit:LanguageModel") for node in nodes)
    victim = next(node for node in nodes if not node.processes("ServeReplica:videolavit:Ingress"))
    victim.cut()
    wait_for(answers, "the service does not answer")
    assert job.process.poll() is None
