"""The metrics of a server under vLLM's names."""

from solm.serving.metrics import Metrics, VllmNames


def test_the_same_numbers_have_vllms_names_with_the_models():
    metrics, held = Metrics(), [(10, 1000)]
    metrics.pages.set_function(lambda: held[0][0])
    metrics.page_bytes.set_function(lambda: held[0][1])
    metrics.registry.register(VllmNames(metrics, "m", 16, lambda page_bytes: 30 + 1000 / page_bytes))

    def value(name, **labels):
        return metrics.registry.get_sample_value(f"vllm:{name}", {"model_name": "m", **labels})

    assert value("kv_cache_usage_perc") == 10 / 40
    held[0] = (0, 0)
    assert value("kv_cache_usage_perc") == 0.0  # a router that finds no value would call the server full, or unknown
    assert value("cache_config_info", block_size="16", num_gpu_blocks="40") == 1.0  # as many as fit, while none is held
    metrics.running.set(3)
    metrics.waiting.set(2)
    for kind, count in (("prompt", 7), ("cached", 5), ("completion", 11)):
        metrics.tokens.labels(kind).inc(count)
    for reason in ("stop", "length", "cancelled", "timeout", "server_error"):
        metrics.ended.labels(reason).inc()
    for seconds in (0.012, 0.07, 100):
        metrics.gap.observe(seconds)
    assert (value("num_requests_running"), value("num_requests_waiting")) == (3, 2)
    assert (value("prompt_tokens_total"), value("generation_tokens_total")) == (12, 11)
    assert (value("prefix_cache_queries_total"), value("prefix_cache_hits_total")) == (12, 5)
    found = [value("request_success_total", finished_reason=reason) for reason in ("stop", "length", "abort", "error")]
    assert found == [1, 1, 1, 2]
    for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
        bounds = ("0.01", "0.02", "0.1", "+Inf")
        assert [value(f"{name}_bucket", le=bound) for bound in bounds] == [0, 1, 2, 3]
        assert (value(f"{name}_count"), value(f"{name}_sum")) == (3, 100.082)
    assert value("time_to_first_token_seconds_count") == 0
    assert b'vllm:num_requests_running{model_name="m"} 3.0' in metrics.text()
