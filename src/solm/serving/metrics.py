"""Metrics of a server in the format of Prometheus, also by vLLM's names."""

import math
from collections import Counter as Count
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from solm.runtime.reply import Trace
from solm.serving.settings import PRIORITIES

_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""vLLM's words for how replies end; all others are errors."""
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """One registry per server, so that several can live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = self.registry
        self.running = Gauge("solm_rows_running", "Rows that decode.", registry=of)
        self.waiting = Gauge("solm_rows_waiting", "Rows that wait for a place or are being read.", registry=of)
        self.requests = Counter("solm_requests", "Requests answered.", ["route", "status"], registry=of)
        self.ended = Counter("solm_rows_ended", "Rows that ended, by how.", ["reason"], registry=of)
        self.ended.labels("server_error")  # there from the start: rate() does not see the first value of a series
        self.tokens = Counter("solm_tokens", "Tokens read and written.", ["kind"], registry=of)
        self.completion_tokens = self.tokens.labels("completion")
        self.guesses = Counter(
            "solm_guesses", "Tokens guessed, by source and outcome.", ["source", "outcome"], registry=of
        )
        self.first = Histogram(
            "solm_time_to_first_token_seconds", "Until the first token.", buckets=_SECONDS, registry=of
        )
        self.gap = Histogram("solm_time_per_token_seconds", "Between a row's tokens.", buckets=_SECONDS, registry=of)
        self.steps = Summary("solm_step_seconds", "Decode steps of all rows together.", registry=of)
        self.reads = Summary("solm_prefill_seconds", "Chunks of prompts that were read.", registry=of)
        self.net = Histogram(
            "solm_net_keep", "Realised net keep of rows.", buckets=[step / 20 for step in range(4, 21)], registry=of
        )
        self.time = Summary("solm_time_share", "Share of dense steps' time that replies realised.", registry=of)
        self.dense = Gauge("solm_dense_step_milliseconds", "Of one row, by this machine's clock.", registry=of)
        self.loss = Summary("solm_loss_nats", "Expected or measured loss per token of replies.", registry=of)
        # By a label, so that it is absent where nothing is told.
        self.joules = Counter("solm_energy_joules", "Energy of replies that ended.", ["source"], registry=of)
        self.saving = Gauge(
            "solm_governor_saving", "Share of a step that budgets at their floors save now, NaN: unknown.", registry=of
        )
        self.allowed = Gauge("solm_governor_rows", "Rows that may decode together now.", registry=of)
        self.prefix_tokens = Gauge("solm_prefix_cache_tokens", "Prompt tokens kept for later prompts.", registry=of)
        self.prefix_bytes = Gauge("solm_prefix_cache_bytes", "What their keys and values take.", registry=of)
        self.pages = Gauge("solm_pages", "Pages of keys and values held, on the cpu backend.", registry=of)
        self.page_bytes = Gauge("solm_page_bytes", "What they take.", registry=of)
        rows, priority = "Rows by priority and state.", ["priority"]
        self.class_rows = Gauge("solm_class_rows", rows, [*priority, "state"], registry=of)
        dial = "By priority; 1: budgets as requested, 0: floors."
        self.class_dial = Gauge("solm_class_dial", dial, priority, registry=of)
        self.class_net = Summary("solm_class_net_keep", "Realised net keep of rows by priority.", priority, registry=of)
        requested = "Net keep that they requested."
        self.class_requested = Summary("solm_class_net_requested", requested, priority, registry=of)
        for name in PRIORITIES:  # all there from the start
            self.class_net.labels(name)
            self.class_requested.labels(name)

    def replied(
        self, reason: str, priority: str, requested: float, realised: Mapping[str, float], trace: Trace
    ) -> None:
        """Count a reply that has ended: how, its guesses and its energy, the net keeps that it requested and spent, and
        its time and loss where it tells them."""
        self.ended.labels(reason).inc()
        for source, (guessed, accepted) in trace.guesses.items():
            self.tokens.labels("guessed").inc(guessed)
            self.tokens.labels("accepted").inc(accepted)
            self.guesses.labels(source, "kept").inc(accepted)
            self.guesses.labels(source, "dropped").inc(guessed - accepted)
        self.net.observe(realised["net"])
        self.class_net.labels(priority).observe(realised["net"])
        self.class_requested.labels(priority).observe(requested)
        if trace.joules is not None:
            self.joules.labels("rapl").inc(trace.joules)
        if "time" in realised:
            self.time.observe(realised["time"])
            self.dense.set(realised["dense_ms"])
        if "loss" in realised:
            self.loss.observe(realised["loss"])

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class VllmNames(Collector):
    """Reads a server's metrics when they are scraped; decoding pays nothing for a second name.

    model: value of the label. page_size: tokens of a page. most_pages: how many pages fill the memory for keys and
    values, by the bytes of one, of which infinity leaves out those of earlier prompts.
    """

    def __init__(self, metrics: Metrics, model: str, page_size: int, most_pages: Callable[[float], float]):
        self._metrics, self._model, self._page_size, self._most_pages = metrics, model, page_size, most_pages
        self._page_bytes = math.inf

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that the registry collects no values when this is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        ours = self._metrics
        tokens = {sample.labels["kind"]: sample.value for sample in _samples(ours.tokens)}
        read, cached = tokens.get("prompt", 0.0), tokens.get("cached", 0.0)
        pages, size = (_samples(each)[0].value for each in (ours.pages, ours.page_bytes))
        if pages:
            self._page_bytes = size / pages  # the last that was seen: routers read how many fit while none is held, too
        fit = self._most_pages(self._page_bytes)
        pool = {"block_size": str(self._page_size), "num_gpu_blocks": str(int(fit))}
        ended = Count[str]()
        for sample in _samples(ours.ended):
            ended[_REASONS.get(sample.labels["reason"], "error")] += int(sample.value)
        ends = [Sample("_total", {"finished_reason": reason}, number) for reason, number in ended.items()]
        for kind, name, text, samples in (
            ("gauge", "num_requests_running", "Rows that decode.", _samples(ours.running)),
            ("gauge", "num_requests_waiting", "Rows that wait or are read.", _samples(ours.waiting)),
            ("counter", "prompt_tokens", "Tokens of prompts.", [Sample("_total", {}, read + cached)]),
            ("counter", "generation_tokens", "Tokens written.", [Sample("_total", {}, tokens.get("completion", 0.0))]),
            ("counter", "prefix_cache_queries", "Tokens of prompts looked up.", [Sample("_total", {}, read + cached)]),
            ("counter", "prefix_cache_hits", "Tokens of prompts that were kept.", [Sample("_total", {}, cached)]),
            ("gauge", "kv_cache_usage_perc", "Pages held, of those that fit.", [Sample("", {}, pages / fit)]),
            ("gauge", "cache_config_info", "Pages of keys and values.", [Sample("", pool, 1.0)]),
            ("counter", "request_success", "Rows that ended.", ends),
            ("histogram", "time_to_first_token_seconds", "Until the first token.", _samples(ours.first)),
            ("histogram", "inter_token_latency_seconds", "Between a row's tokens.", _samples(ours.gap)),
            ("histogram", "time_per_output_token_seconds", "The same under an older name.", _samples(ours.gap)),
        ):
            family = Metric(f"vllm:{name}", text, kind)
            for sample in samples:
                labels = {"model_name": self._model, **sample.labels}
                family.add_sample(f"{family.name}{sample.name}", labels, sample.value)
            yield family


def _samples(metric: Collector) -> list[Sample]:
    """The samples of one of our metrics, named by their endings, but for the times at which they began."""
    named = [
        sample._replace(name=sample.name.removeprefix(family.name))
        for family in metric.collect() for sample in family.samples
    ]  # fmt: skip
    return [sample for sample in named if sample.name != "_created"]
