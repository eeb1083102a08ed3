"""Mistakes in the settings of a service, found before anything is started."""

import socket

import ray
from sqlalchemy.exc import SQLAlchemyError

from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError
from videolavit.models.part_files import open_tensors
from videolavit.models.parts import PARTS
from videolavit.records.storage import Folder, StorageError

from .keys import read_keys
from .settings import ServeSettings
from .storage import check_sqlite, database_url, private_storage
from .store import JobStore

PROBE = ".probe"
"""File that is written to the storage, and removed again."""


def check_settings(settings: ServeSettings) -> ModelFolder:
    """Model of a service whose keys, address, model, storage and database can be used.

    Raises:
        ValueError: one of them cannot be used; the message is one line.
        ModelError: the model lacks a part, or a file of it cannot be read.
    """
    if settings.keys is not None:
        read_keys(settings.keys)
    _check_address(settings.host, settings.port)
    model = _check_model(settings.model)
    folder = _check_storage(settings.storage)
    try:
        url = database_url(settings.database, folder)
        check_sqlite(url)
        JobStore(url).engine.dispose()
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise ValueError(f"the database cannot be used: {str(error).splitlines()[0]}") from None
    return model


def check_resources(settings: ServeSettings) -> None:
    """Raises ValueError if the replicas need more than this machine has, on which they would wait for ever."""
    has = ray.cluster_resources()
    for name, unit, needed in (
        ("CPU", "CPU cores", sum(one.replica_range[0] * one.num_cpus for one in settings.all_replicas)),
        ("GPU", "GPUs", sum(one.replica_range[0] * one.num_gpus for one in settings.all_replicas)),
    ):
        if needed > has.get(name, 0):
            raise ValueError(
                f"the replicas need {needed:g} {unit}, and this machine has {has.get(name, 0):g}; "
                f"lower num_{name.lower()}s or the number of replicas"
            )


def _check_address(host: str, port: int) -> None:
    """Raises ValueError if the service cannot listen on an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host}, port {port}: {error.strerror}; give another port or host"
            ) from None


def _check_model(location: str) -> ModelFolder:
    """Model with every part that a service needs. Raises ModelError."""
    model = ModelFolder(location)
    for part in PARTS:
        if not model.has(part) and not part.startswith("understanding/"):  # without it no questions are answered
            raise ModelError(f"{location} has no {part}; a service needs every part of a model")
        if model.path.is_dir() and model.has(part) and not part.endswith("/scheduler"):
            with open_tensors(model.path / part):
                pass
    try:
        _ = model.sizes, model.vocabulary, model.motion_tokens, model.num_patches
        _ = model.pixel_multiple("keyframe_detokenizer"), model.pixel_multiple("video_detokenizer")
    except KeyError as name:
        raise ModelError(f"a config in {location} lacks {name}") from None
    model.text_tokenizer()
    return model


def _check_storage(url: str) -> Folder:
    """Storage to which a file can be written. Raises StorageError."""
    try:
        folder = private_storage(url)
        folder.replace(PROBE, b"")
        folder.remove(PROBE)
    except OSError as error:
        raise StorageError(f"cannot write to the storage {url}: {error.strerror or error}") from None
    return folder
