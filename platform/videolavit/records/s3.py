"""S3 with its requests counted where they are sent, so that repeated attempts count too."""

from typing import Any

from s3fs import S3FileSystem

from .traffic import RECEIVED, S3_TRAFFIC, SENT


class CountedS3(S3FileSystem):  # type: ignore[misc]  # s3fs is untyped
    """s3fs, whose requests are added to `S3_TRAFFIC`."""

    async def set_session(self, refresh: bool = False, kwargs: Any = None) -> Any:
        """The client, which every request asks for; a new one is told to count."""
        client = await super().set_session(refresh=refresh, kwargs=kwargs or {})
        client.meta.events.register("before-send.s3", _note_request, unique_id="videolavit-sent")
        client.meta.events.register("response-received.s3", _note_answer, unique_id="videolavit-received")
        return client


def _note_request(request: Any, event_name: str, **_: Any) -> None:
    S3_TRAFFIC.add({_operation(event_name): 1, SENT: int(request.headers.get("Content-Length") or 0)})


def _note_answer(response_dict: dict[str, Any] | None, event_name: str, **_: Any) -> None:
    if response_dict is not None and not _operation(event_name).startswith("Head"):  # a length of what is not sent
        S3_TRAFFIC.add({RECEIVED: int(response_dict["headers"].get("Content-Length") or 0)})


def _operation(event: str) -> str:
    """`GetObject` of `before-send.s3.GetObject`."""
    return event.rpartition(".")[2]
