"""Tiny random models of every family, and token ids and keep rates for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CONTEXT, STEPS = 61, 12
SIZES = {
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma2": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 512},
    "granite": {
        "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 4.0,
    },
    "ministral": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "qwen2_moe": {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96,
    },
    "gpt_neox": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "granitemoe": {
        "num_local_experts": 8, "num_experts_per_tok": 3,
        "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 4.0,
    },
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 40},
    "exaone4": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


def tiny_model(family: str, dtype: torch.dtype = torch.float64, **changes):
    """A random two-layer model of `family`, weights scaled up so that its choices are not all ties."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **EXTRA.get(family, {}), **changes})
    config._experts_implementation = "eager"  # transformers' default has no float64
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.15
    for name, parameter in model.named_parameters():  # which are all 0 in a new model
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.15
    return model


def disturbed(model, by: float = 0.03):
    """`model` with noise in its weights: it agrees with what it was about as often as not."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(seed))


def keep_of(action, rows: int, steps: int) -> torch.Tensor:
    return torch.tensor(action, dtype=torch.float64).expand(rows, steps, 3)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token: no file, no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
