"""All that can be set about a service, typed; YAML, the command line and the builder's arguments derive from it."""

from dataclasses import field
from ipaddress import ip_address

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from videolavit.generation.runtime import RuntimeSettings
from videolavit.generation.settings import GenerateSettings
from videolavit.models.network import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Limits:
    """What a request may ask for, and what the service takes on.

    Args:
        body_megabytes: Of a request's body; enforced while it is read.
        input_pixels: Of an uploaded picture, or of a frame of an uploaded video.
        input_seconds: Of an uploaded video.
        decode_seconds: Time that the decoding of an upload may take.
        pixels: Of a picture, or of a frame of a video, to be made.
        seconds: Of a video to be made.
        images: Most pictures of one request.
        tokens: Most tokens of an answer.
        prompt_characters: Of all texts of a request.
        in_flight: Requests in work at once; more are answered with 429.
        open_jobs: Video jobs that are queued or in work, of all keys together.
        open_jobs_a_key: The same of one key.
        request_seconds: Deadline of a request; a client may ask for a shorter one.
        job_seconds: Deadline of a video job, once begun.
        job_attempts: How often a job is begun that was interrupted by the end of its process.
    """

    body_megabytes: int = 64
    input_pixels: int = 4096 * 4096
    input_seconds: float = 120.0
    decode_seconds: float = 60.0
    pixels: int = 1024 * 1024
    seconds: float = 20.0
    images: int = 4
    tokens: int = 1024
    prompt_characters: int = 20_000
    in_flight: int = 64
    open_jobs: int = 100
    open_jobs_a_key: int = 20
    request_seconds: float = 300.0
    job_seconds: float = 3600.0
    job_attempts: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not name.startswith("_") and not value > 0:
                raise ValueError(f"limits.{name} must be above 0, not {value}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Replicas:
    """How many copies of a deployment run, and on what.

    Args:
        min_replicas: Fewest copies; None for one, and for two of the video detokenizer where it has no GPU.
        max_replicas: Most copies, None for as many as the fewest; between the two the number follows the load.
        num_cpus: Cores of a copy.
        num_gpus: GPUs of a copy, or a share of one.
        batch: Requests that a copy works on together; None for 8 with a GPU and 2 without, where a batch takes as long
            as its requests one by one, and the next part of the graph waits for it.
    """

    min_replicas: int | None = None
    max_replicas: int | None = None
    num_cpus: float = 0.25
    num_gpus: float = 0.0
    batch: int | None = None

    def __post_init__(self) -> None:
        least, most = self.copies
        if not 1 <= least <= most or self.together < 1:
            raise ValueError("min_replicas must be at least 1 and not above max_replicas, and batch at least 1")

    @property
    def copies(self) -> tuple[int, int]:
        """Fewest and most."""
        usual = self._usual if self.max_replicas is None else min(self._usual, self.max_replicas)
        least = usual if self.min_replicas is None else self.min_replicas
        return least, least if self.max_replicas is None else self.max_replicas

    @property
    def _usual(self) -> int:
        return 1

    @property
    def together(self) -> int:
        """Requests that a copy works on together."""
        if self.batch is not None:
            return self.batch
        return 8 if self.num_gpus else 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WriterReplicas(Replicas):
    """The same for a language model, to whose steps further rows add little, with a GPU or without.

    Args:
        prefix_tokens: Tokens of chats that are remembered, so that a chat's next question, and another chat of the same
            key, are read from where they differ; 0 for none.
    """

    batch: int | None = 32
    prefix_tokens: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_tokens < 0:
            raise ValueError("prefix_tokens must be at least 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoReplicas(Replicas):
    """The same for the video detokenizer, which has most of a video's work: on a CPU only copies make it faster."""

    @property
    def _usual(self) -> int:
        return 1 if self.num_gpus else 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeSettings:
    """A service.

    Args:
        model: Model folder, or a preset with untrained weights: tiny, small, video-lavit-7b.
        name: What clients call the model; None for the name of its folder.
        storage: Folder or fsspec URL for results and uploads, seen by all nodes.
        database: SQLAlchemy URL of the job store; None for an SQLite file in the storage, which must then be a folder.
        keys: File of API keys; None for none, which is for loopback only.
        host: Address that the service listens on.
        port: Port that it listens on.
        result_hours: How long results are kept.
        lease_seconds: A job whose process has not been heard of for so long is begun again.
        jobs_at_once: Video jobs that an ingress works on at once.
        drain_seconds: How long a replica that is to go may finish what it does: longer than a job's longest step.
        batch_wait: Seconds that a detokenizer waits for further requests to batch.
        fetch_hosts: Hosts that pictures and videos may be fetched from by http(s); none by default.
        runtime: Device and precision.
        generation: Samplers' steps and guidance.
        limits: What is refused.
        ingress, visual_tokenizer, language_model, keyframe_detokenizer, video_detokenizer: Copies of each deployment.
    """

    model: str = "tiny"
    name: str | None = None
    storage: str = "serve-data"
    database: str | None = None
    keys: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    result_hours: float = 24.0
    lease_seconds: float = 15.0
    jobs_at_once: int = 8
    drain_seconds: float = 60.0
    batch_wait: float = 0.02
    fetch_hosts: list[str] = field(default_factory=list)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    generation: GenerateSettings = field(default_factory=GenerateSettings)
    limits: Limits = field(default_factory=Limits)
    ingress: Replicas = field(default_factory=Replicas)
    visual_tokenizer: Replicas = field(default_factory=Replicas)
    language_model: WriterReplicas = field(default_factory=WriterReplicas)
    keyframe_detokenizer: Replicas = field(default_factory=Replicas)
    video_detokenizer: VideoReplicas = field(default_factory=VideoReplicas)

    def __post_init__(self) -> None:
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from elsewhere: give API keys with --keys FILE, or listen on 127.0.0.1"
            )
        if self.database is None and "://" in self.storage:
            raise ValueError(f"give a database: the storage {self.storage} is no folder that could hold an SQLite file")

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]


def read_settings(values: dict[str, object]) -> ServeSettings:
    """Settings from plain values, as YAML or a builder's arguments give them. Raises ValueError, in a line."""
    try:
        return TypeAdapter(ServeSettings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
