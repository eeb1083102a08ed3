"""Prometheus metrics of data runs, on the metrics endpoint of the driver's node."""

from ray.util.metrics import Counter, Gauge

from videolavit.records.traffic import RECEIVED, S3_TRAFFIC, SENT

from .shard_records import STAGE_SECONDS, ShardRecord
from .watch import ShardWatch

_TAGS = ("pipeline",)
COUNTED = {
    "videolavit_data_shards": "committed shards",
    "videolavit_data_samples": "samples that are in shards or rejected",
    "videolavit_data_bytes": "bytes of committed shards",
    "videolavit_data_clips": "clips in shards",
    "videolavit_data_failed_shards": "shards that could not be made, by node",
    "videolavit_data_rejects": "rejected samples by error type",
    "videolavit_data_seconds": "seconds that workers spent, by stage",
}
"""Counters of a data run; Prometheus sees them as `ray_NAME_total`."""

MEASURED = {
    "videolavit_data_shards_working": "shards that are being made",
    "videolavit_data_shards_silent": "shards in work that have reported nothing for long",
    "videolavit_data_samples_left": "samples that are left in this start",
    "videolavit_data_s3_requests": "requests to S3 in all starts, of the driver and of workers, by operation",
    "videolavit_data_s3_bytes": "bytes of those requests and their answers, by direction",
}
"""Gauges of a data run; Prometheus sees them as `ray_NAME`."""

_PLAIN = ("shards", "samples", "bytes", "clips")
_FURTHER = {
    "videolavit_data_failed_shards": "node",
    "videolavit_data_rejects": "type",
    "videolavit_data_seconds": "stage",
    "videolavit_data_s3_requests": "operation",
    "videolavit_data_s3_bytes": "direction",
}


class DataMetrics:
    """Metrics of a start.

    Args:
        pipeline: Name of the pipeline, in the label `pipeline`.
    """

    def __init__(self, pipeline: str) -> None:
        self._pipeline = {"pipeline": pipeline}
        self._counters = {name: Counter(name, text, _tags(name)) for name, text in COUNTED.items()}
        self._gauges = {name: Gauge(name, text, _tags(name)) for name, text in MEASURED.items()}

    def add(self, record: ShardRecord) -> None:
        """Counts a record."""
        counts = record["counts"]
        for name in _PLAIN:
            self._count(name, counts.get(name, 0.0))
        for name, value in counts.items():
            if name.startswith(STAGE_SECONDS):
                self._count("seconds", value, stage=name.removeprefix(STAGE_SECONDS))
        for kind in record["rejected"]:
            self._count("rejects", 1, type=kind)
        if record["error"] is not None:
            self._count("failed_shards", 1, node=record["node"])

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:
            self._counters[f"videolavit_data_{name}"].inc(value, self._pipeline | tags)

    def show(self, watch: ShardWatch) -> None:
        """Sets what is measured now."""
        values = {
            "shards_working": len(watch.working),
            "shards_silent": len(watch.silent()),
            "samples_left": max(watch.total - watch.counts["samples"], 0),
        }
        for name, value in values.items():
            self._measure(name, value)
        directions = {RECEIVED: "received", SENT: "sent"}
        for name, value in S3_TRAFFIC.counts.items():
            if name in directions:
                self._measure("s3_bytes", value, direction=directions[name])
            else:
                self._measure("s3_requests", value, operation=name)

    def _measure(self, name: str, value: float, **tags: str) -> None:
        self._gauges[f"videolavit_data_{name}"].set(float(value), self._pipeline | tags)


def _tags(name: str) -> tuple[str, ...]:
    """Labels of a metric."""
    return (*_TAGS, _FURTHER[name]) if name in _FURTHER else _TAGS
