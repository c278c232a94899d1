"""What the server counts, as Prometheus text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.queries = Counter(
            'specprune_queries', 'Queries answered with actions.', ['mode'], registry=registry
        )
        self.errors = Counter(
            'specprune_errors', 'Requests answered with an error.', ['kind'], registry=registry
        )
        self.resets = Counter(
            'specprune_resets', 'Queries that began a new episode.', registry=registry
        )
        self.closed = Counter(
            'specprune_closed', 'Connections the server closed.', ['reason'], registry=registry
        )
        self.seconds = Histogram(
            'specprune_query_seconds',
            'From the whole request to the packed reply.',
            buckets=_SECONDS,
            registry=registry,
        )
        self.waited = Histogram(
            'specprune_queue_seconds',
            'What a query waited for the model.',
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            'specprune_batch_size',
            'Queries that ran as one batch.',
            buckets=_BATCHES,
            registry=registry,
        )
        self.bytes_in = Counter(
            'specprune_received_bytes', 'Bytes of requests.', registry=registry
        )
        self.bytes_out = Counter('specprune_sent_bytes', 'Bytes of replies.', registry=registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a value that is read when it is collected."""
        Gauge(f'specprune_{name}', text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
