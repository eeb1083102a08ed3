"""What a component is trained on, as the user names it."""

from dataclasses import dataclass, field

from videolavit.records.storage import StorageSettings


@dataclass(frozen=True)
class Inputs:
    """Where training data is.

    Args:
        train: Runs of `videolavit decompose` or `tokenize`, or corpora, as paths or URLs; which, depends on the
            component. Each is a source of its own.
        weights: Share of each source in a step; None takes their numbers of samples.
        validation: Held-out data of the same kinds.
        seed: Decides the order.
        window: Shards of a source whose samples are mixed at a time.
        storage: Where S3 is.
    """

    train: list[str]
    weights: list[float] | None = None
    validation: list[str] = field(default_factory=list)
    seed: int = 0
    window: int = 16
    storage: StorageSettings = field(default_factory=StorageSettings)
