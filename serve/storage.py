"""Private places of a service: the folder of its results and uploads, and the database of its jobs."""

import os
from pathlib import Path

from videolavit.records.storage import Folder, StorageSettings

JOB_FOLDERS = ("results", "uploads")
"""Folders of a storage that the service fills."""

MOUNTS = Path("/proc/mounts")

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "glusterfs",
            "gpfs",
            "lustre",
            "nfs",
            "nfs4",
            "smb3",
            "smbfs",
            "virtiofs",
        ),
        *(f"fuse.{name}" for name in ("ceph", "gcsfuse", "glusterfs", "goofys", "rclone", "s3fs", "sshfs")),
    )
)
"""Types of file systems, as Linux names them, that other machines may write to."""


def private_storage(url: str) -> Folder:
    """Storage of a service. A missing local folder is made, for its user alone: prompts and uploads are private.

    In a folder that is there, only the service's own are closed to others.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = Folder(url, StorageSettings())
    if folder.is_local:
        Path(folder.path).mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in JOB_FOLDERS:
            own = Path(folder.path, name)
            own.mkdir(mode=0o700, exist_ok=True)
            own.chmod(0o700)
    return folder


def database_url(given: str | None, storage: Folder) -> str:
    """Given URL of a database, or that of the SQLite file in a local storage, which nobody else may read."""
    if given is not None:
        return given
    file = Path(storage.path) / "jobs.sqlite"
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return f"sqlite:///{file}"


def check_sqlite(url: str, nodes: int = 1) -> None:
    """Raises ValueError if an SQLite file could not be shared by the ingresses of a service.

    Its locks and its shared memory hold on one machine, and on disks of that machine.

    Args:
        url: URL of the database.
        nodes: Number of nodes on which ingresses may run.
    """
    if not url.startswith("sqlite:///"):
        return
    if nodes > 1:
        raise ValueError("ingresses on several nodes cannot share an SQLite file: give a PostgreSQL URL (database)")
    folder = Path(url.removeprefix("sqlite:///")).parent
    kind = _file_system(str(folder.resolve()), MOUNTS.read_text())
    if kind in NETWORK_FILE_SYSTEMS:
        raise ValueError(
            f"{folder} is on a network file system ({kind}), on which SQLite loses jobs: give a PostgreSQL URL "
            "(database), or a storage on a disk"
        )


def _file_system(path: str, mounts: str) -> str:
    """Type of the file system of a path, from the lines of `/proc/mounts`."""
    found = [line.split(" ") for line in mounts.splitlines()]
    places = {parts[1].encode().decode("unicode_escape"): parts[2] for parts in found if len(parts) > 2}
    above = [one for one in places if path == one or path.startswith(one.rstrip("/") + "/")]
    return places[max(above, key=len)] if above else ""
