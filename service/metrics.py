"""Prometheus metrics of one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Every metric of the service, on a registry of its own so that tests can have many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("hone_requests_total", "Answered requests", ["route", "status"], registry=r)
        self.request_seconds = Histogram(
            "hone_request_seconds", "Time to answer", ["route"], buckets=_LATENCY_BUCKETS_S, registry=r
        )
        self.degraded = Counter("hone_degraded_total", "Responses that left a part out", ["part"], registry=r)
        self.events = Counter("hone_events_total", "Events by fate", ["fate"], registry=r)
        self.model_version = Gauge("hone_model_version", "Model version served", ["model"], registry=r)
        self.model_gaps = Counter("hone_model_gaps_total", "Weight deltas missed, snapshot loaded", registry=r)
        self.model_snapshots_stale = Counter(
            "hone_model_snapshots_stale_total", "Snapshots loaded that did not reach the next delta", registry=r
        )
        self.scorer_mismatches = Counter(
            "hone_scorer_mismatches_total", "Sampled requests on which table and VW differed", registry=r
        )
        self.explorer_refused = Counter(
            "hone_explorer_refused_total", "Published explorers that could not be used", registry=r
        )
        self.explorer_load_seconds = Histogram(
            "hone_explorer_load_seconds",
            "Time that loading an explorer held requests",
            buckets=_LATENCY_BUCKETS_S,
            registry=r,
        )
        self.catalogue_items = Gauge("hone_catalogue_items", "Items in the catalogue", registry=r)
        self.bundles_served = Counter("hone_index_swaps_total", "Index bundles exchanged while serving", registry=r)
        self.bundles_refused = Counter("hone_index_refused_total", "Index bundles that could not be used", registry=r)
        self.item_vectors_moved = Counter(
            "hone_item_vectors_moved_total", "Vectors of new items moved by live counts", registry=r
        )
        self.follower_retries = Counter("hone_follower_retries_total", "Failed reads of followed streams", registry=r)
        self.overrides_refused = Counter(
            "hone_config_overrides_refused_total", "Live overrides that could not be applied", registry=r
        )
        self.tasks_stopped = Counter(
            "hone_tasks_stopped_total", "Background tasks of a worker that ended by a mistake", ["task"], registry=r
        )
        self.spool_waiting = Gauge("hone_spool_waiting", "Spooled entries not yet in the journal", registry=r)
        self.spool_retries = Counter("hone_spool_retries_total", "Failed shipments", registry=r)
        self.spool_adopted = Counter("hone_spool_adopted_total", "Entries taken over from dead workers", registry=r)
        self.user_state_failures = Counter(
            "hone_user_state_failures_total", "User state calls that failed", ["call"], registry=r
        )
        self.learner_outcomes = Gauge(
            "hone_learner_outcomes", "Joins by reason since the first start", ["reason"], registry=r
        )
        self.model_occupied_share = Gauge(
            "hone_model_occupied_share", "Share of the weight table in use", ["model"], registry=r
        )
        self.model_collision_share = Gauge(
            "hone_model_collision_share",
            "Expected share of used weights that several features share",
            ["model"],
            registry=r,
        )
        self.learner_leads = Gauge(
            "hone_learner_leads", "1 when this process learns the model, 0 when it stands by", ["model"], registry=r
        )
        self.learner_lag_seconds = Gauge("hone_learner_lag_seconds", "Age of the newest applied entry", registry=r)
        self.learner_loss = Gauge("hone_learner_progressive_loss", "Mean progressive squared loss", registry=r)
        self.health_status = Gauge("hone_health_status", "0 ok, 1 warning, 2 alarm", registry=r)
        self.health_value = Gauge("hone_health_value", "What the health watch measured", ["name"], registry=r)
        self.health_alarm = Gauge("hone_health_alarm", "1 warning, 2 alarm; only what is wrong", ["name"], registry=r)
        self.archived = Counter("hone_archived_total", "Entries archived", registry=r)
