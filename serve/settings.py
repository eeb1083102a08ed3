"""Settings of a service; YAML files, the command line and the builder's arguments derive from them."""

from dataclasses import field
from ipaddress import ip_address

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from videolavit.generation.runtime import RuntimeSettings
from videolavit.generation.settings import GenerateSettings
from videolavit.models.network import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Limits:
    """Limits of requests, and of the work that the service accepts.

    Args:
        body_megabytes: Largest accepted request body, in MiB; enforced while the body is received.
        bodies_megabytes: Most MiB of bodies of all requests in progress, together.
        input_pixels: Most pixels of an uploaded image or of a frame of an uploaded video.
        input_seconds: Longest accepted upload, in seconds of video.
        decode_seconds: Time that decoding an upload may take, in seconds.
        pixels: Most pixels of a generated image or of a frame of a generated video.
        seconds: Longest generated video, in seconds.
        inference_steps: Most denoising steps that a request for a video may ask for.
        images: Most images per request for images.
        media: Most images and videos of a chat.
        tokens: Most tokens of a chat completion.
        prompt_characters: Most characters of all texts of a request.
        in_flight: Most requests in flight per ingress replica; more are answered with 429.
        open_jobs: Most video jobs that are queued or in progress, of all keys.
        open_jobs_per_key: Most video jobs that are queued or in progress, of one key.
        request_seconds: Deadline of a request, in seconds; a client may set a shorter one.
        job_seconds: Deadline of a video job after it starts, in seconds.
        job_attempts: Number of starts after which a job fails if each was ended by the end of a process.
    """

    body_megabytes: int = 64
    bodies_megabytes: int = 512
    input_pixels: int = 4096 * 4096
    input_seconds: float = 120.0
    decode_seconds: float = 60.0
    pixels: int = 1024 * 1024
    seconds: float = 20.0
    inference_steps: int = 100
    images: int = 4
    media: int = 128
    tokens: int = 4096
    prompt_characters: int = 20_000
    in_flight: int = 64
    open_jobs: int = 100
    open_jobs_per_key: int = 20
    request_seconds: float = 300.0
    job_seconds: float = 3600.0
    job_attempts: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not name.startswith("_") and not value > 0:
                raise ValueError(f"limits.{name} must be above 0, not {value}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Replicas:
    """Replicas of a deployment, and their resources.

    Args:
        min_replicas: Fewest replicas; None for one, or for two of the video detokenizer where it has no GPU.
        max_replicas: Most replicas, between which and the fewest Serve scales with the load; None for no scaling.
        num_cpus: CPU cores of a replica.
        num_gpus: GPUs of a replica, or a fraction of one.
        batch_size: Most requests in a batch; None for 8 with a GPU and 2 without, where a batch takes as long as its
            requests one by one, and the next deployment waits for it.
    """

    min_replicas: int | None = None
    max_replicas: int | None = None
    num_cpus: float = 0.25
    num_gpus: float = 0.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        fewest, most = self.replica_range
        if not 1 <= fewest <= most or self.largest_batch < 1:
            raise ValueError("min_replicas must be at least 1 and not above max_replicas, and batch_size at least 1")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError("num_cpus and num_gpus must be at least 0")

    @property
    def replica_range(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        default = self._default if self.max_replicas is None else min(self._default, self.max_replicas)
        fewest = default if self.min_replicas is None else self.min_replicas
        return fewest, fewest if self.max_replicas is None else self.max_replicas

    @property
    def _default(self) -> int:
        return 1

    @property
    def largest_batch(self) -> int:
        """Most requests in a batch."""
        if self.batch_size is not None:
            return self.batch_size
        return 8 if self.num_gpus else 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageModelReplicas(Replicas):
    """Replicas of the language model, whose decoding steps take little longer with more sequences in the batch.

    Args:
        prefix_tokens: Size of the prefix cache, in tokens, with which the next question of a chat, or another chat of
            the same key, is prefilled only from where it differs; 0 for no cache.
    """

    batch_size: int | None = 32
    prefix_tokens: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_tokens < 0:
            raise ValueError("prefix_tokens must be at least 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoReplicas(Replicas):
    """Replicas of the video detokenizer, which does most of the work of a video: on CPUs only replicas speed it up."""

    @property
    def _default(self) -> int:
        return 1 if self.num_gpus else 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeSettings:
    """Settings of a service.

    Args:
        model: Model folder, the small model that ships, shapes, or a preset with untrained weights: tiny, mini, small,
            video-lavit-7b.
        name: Name that clients call the model by; None for the name of its folder.
        storage: Folder or fsspec URL for results and uploads, which all nodes can reach.
        database: SQLAlchemy URL of the job store; None for an SQLite file in the storage, which must then be a folder.
        keys: File of API keys; None for a service without keys, which only loopback addresses can use.
        host: Address that the service listens on.
        port: Port that the service listens on.
        root_path: Path under which a proxy in front of the service offers it, such as `/video`; the proxy removes it.
        cors_origins: Origins, such as `https://example.com`, whose pages may call the service; `*` for all.
        log_requests: Write a log line for each request; warnings and errors are written in any case.
        result_hours: Time that results are kept, in hours.
        lease_seconds: Time after the last heartbeat of a process until its jobs are given to another one, in seconds.
        concurrent_jobs: Most video jobs in progress per ingress replica.
        drain_seconds: Time that a stopping replica may take to finish its requests, in seconds; longer than the longest
            step of a job.
        batch_wait_seconds: Time that a detokenizer waits for a batch to fill, in seconds.
        fetch_hosts: Hosts from which image and video URLs are fetched over http(s); none by default.
        images_as_video_fps: Frames per second of images that follow each other in a message, which chats then read as
            a video; for clients that cannot ask for it, such as evaluation harnesses. None to read them as images.
        runtime: Device and precision.
        generation: Steps and guidance of the samplers.
        limits: Limits of requests, and of the work that the service accepts.
        ingress: Replicas of the HTTP ingress.
        visual_tokenizer: Replicas of the deployment that decodes and tokenizes uploads.
        language_model: Replicas of the language model.
        keyframe_detokenizer: Replicas of the keyframe detokenizer.
        video_detokenizer: Replicas of the video detokenizer.
    """

    model: str = "tiny"
    name: str | None = None
    storage: str = "serve-data"
    database: str | None = None
    keys: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    cors_origins: list[str] = field(default_factory=list)
    log_requests: bool = True
    result_hours: float = 24.0
    lease_seconds: float = 15.0
    concurrent_jobs: int = 8
    drain_seconds: float = 60.0
    batch_wait_seconds: float = 0.02
    fetch_hosts: list[str] = field(default_factory=list)
    images_as_video_fps: float | None = None
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    generation: GenerateSettings = field(default_factory=GenerateSettings)
    limits: Limits = field(default_factory=Limits)
    ingress: Replicas = field(default_factory=Replicas)
    visual_tokenizer: Replicas = field(default_factory=Replicas)
    language_model: LanguageModelReplicas = field(default_factory=LanguageModelReplicas)
    keyframe_detokenizer: Replicas = field(default_factory=Replicas)
    video_detokenizer: VideoReplicas = field(default_factory=VideoReplicas)

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("host must name an address: 127.0.0.1, or 0.0.0.0 for all of this machine")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port must be between 1 and 65535, not {self.port}")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ValueError(f"root_path begins with a slash and does not end with one, unlike {self.root_path!r}")
        if self.keys is None and "*" in self.cors_origins:
            raise ValueError("cors_origins: with *, every web page could use a service without keys; list the origins")
        for name in ("result_hours", "lease_seconds", "concurrent_jobs", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.images_as_video_fps is not None and not 0 < self.images_as_video_fps <= 60:
            raise ValueError(f"images_as_video_fps must be above 0 and at most 60, not {self.images_as_video_fps}")
        if self.batch_wait_seconds < 0:
            raise ValueError(f"batch_wait_seconds must be at least 0, not {self.batch_wait_seconds}")
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(f"other machines can reach {self.host}: give API keys (keys), or listen on 127.0.0.1")
        if self.database is None and "://" in self.storage:
            raise ValueError(
                f"give a database URL: the storage {self.storage} is not a local folder that can hold an SQLite file"
            )

    @property
    def model_name(self) -> str:
        """Name that clients call the model by."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        """Address of the service, without a slash at the end."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def all_replicas(self) -> list[Replicas]:
        """Replicas of every deployment."""
        return [
            self.ingress,
            self.visual_tokenizer,
            self.language_model,
            self.keyframe_detokenizer,
            self.video_detokenizer,
        ]


def read_settings(values: dict[str, object]) -> ServeSettings:
    """Settings from the values of a YAML file or the builder's arguments. Raises ValueError, with one line."""
    try:
        return TypeAdapter(ServeSettings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None


def is_loopback(host: str) -> bool:
    """Tells whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
