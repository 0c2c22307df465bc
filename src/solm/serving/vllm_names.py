"""vLLM's names for the metrics that both servers have, with its label `model_name`: dashboards made for it work."""

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from solm.serving.metrics import Metrics

_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""vLLM's words for how replies end; all others are errors."""


class VllmNames(Collector):
    """Reads a server's metrics when they are asked for; decoding pays nothing for a second name.

    model: value of the label. most_pages: how many pages fill the memory for keys and values, by the bytes of one.
    """

    def __init__(self, metrics: Metrics, model: str, most_pages: Callable[[float], float]):
        self._metrics, self._model, self._most_pages = metrics, model, most_pages

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that the registry asks for no values when it is told of this."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        ours, model = self._metrics, [self._model]
        tokens = {sample.labels["kind"]: sample.value for sample in _samples(ours.tokens, "_total")}
        read, cached = tokens.get("prompt", 0.0), tokens.get("cached", 0.0)
        pages, size = (_samples(each)[0].value for each in (ours.pages, ours.page_bytes))
        gauges = {
            "num_requests_running": ("Rows that decode.", _samples(ours.running)[0].value),
            "num_requests_waiting": ("Rows that wait or are being read.", _samples(ours.waiting)[0].value),
        }
        if pages:
            used = pages / self._most_pages(size / pages)
            gauges["kv_cache_usage_perc"] = ("Pages held, of those that all rows could fill; 1 is all.", used)
        counters = {
            "prompt_tokens": ("Tokens of prompts.", read + cached),
            "generation_tokens": ("Tokens written.", tokens.get("completion", 0.0)),
            "prefix_cache_queries": ("Tokens of prompts looked up among those kept.", read + cached),
            "prefix_cache_hits": ("Tokens of prompts that were kept.", cached),
        }
        for name, (text, number) in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            gauge.add_metric(model, number)
            yield gauge
        for name, (text, number) in counters.items():
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            counter.add_metric(model, number)
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success", "Rows that ended.", labels=["model_name", "finished_reason"]
        )
        ended = Counter[str]()
        for sample in _samples(ours.ended, "_total"):
            ended[_REASONS.get(sample.labels["reason"], "error")] += int(sample.value)
        for reason, number in ended.items():
            success.add_metric([*model, reason], number)
        yield success
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Until the first token.", ours.first),
            ("inter_token_latency_seconds", "Between a row's tokens.", ours.gap),
            ("time_per_output_token_seconds", "The same under an older name.", ours.gap),
        ):  # fmt: skip
            buckets = [(sample.labels["le"], sample.value) for sample in _samples(histogram, "_bucket")]
            told = HistogramMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            told.add_metric(model, buckets, _samples(histogram, "_sum")[0].value)
            yield told


def _samples(metric: Collector, ending: str = "") -> list[Sample]:
    """The samples of one of our metrics whose names have this ending."""
    return [s for family in metric.collect() for s in family.samples if s.name == f"{family.name}{ending}"]
