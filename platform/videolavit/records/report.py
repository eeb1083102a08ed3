"""The dataset card of a run: `report.html`."""

from typing import Any

from .shards import Ledger
from .storage import Folder


def write_report(folder: Folder, ledger: Ledger, run: dict[str, Any], rejects: list[dict[str, Any]]) -> None:
    folder.replace("report.html", b"<html></html>")
