"""What a model is, apart from its weights: sizes, positions, norms and tensors; and the families that the engine runs.

A new family is a table of the tensors of a layer, and one entry of `FAMILIES` that describes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from solm.backends.cpu.border import CONSTANTS
from solm.backends.cpu.files.rope import Rope
from solm.core.errors import DamagedFileError

MOST_LAYERS, MOST_HEADS, MOST_WIDTH, MOST_TOKENS = 1 << 12, 1 << 12, 1 << 20, 1 << 24
MOST_EXPERTS, MOST_EXPERTS_USED = CONSTANTS["MOST_EXPERTS"], CONSTANTS["MOST_USED"]
"""What sizes may be: beyond every model, and small enough to compute with."""


@dataclass(frozen=True)
class Place:
    """What a weight is called in GGUF files and in transformers models, without the layer's prefix.

    fused: our names of the tensors that files have as one, row after row in this order; none of a tensor of its own.
    by_heads: in transformers models their rows take turns by heads. saved: what folders call it where it has another
    name in memory, with {} for an expert's number where each has a tensor of its own. of_experts: other tensors have
    all experts' one after another, [experts, outputs, inputs], and only transformers fuses them. transposed: there they
    are [experts, inputs, outputs], and the outputs of fused ones take turns.
    """

    gguf: str
    transformers: str
    fused: tuple[str, ...] = ()
    saved: str = ""
    by_heads: bool = False
    of_experts: bool = False
    transposed: bool = False


GGUF_LAYER, TRANSFORMERS_LAYER = "blk.{}.", "model.layers.{}."
"""What files write before the names of layer {}."""
MODEL = {
    "embedding": Place("token_embd.weight", "model.embed_tokens.weight"),
    "final_norm": Place("output_norm.weight", "model.norm.weight"),
    "head": Place("output.weight", "lm_head.weight"),
}
"""Tensors outside the layers, of most families. A model with a tied head lacks `head`."""

_MATRICES = {
    "q": Place("attn_q.weight", "self_attn.q_proj.weight"),
    "k": Place("attn_k.weight", "self_attn.k_proj.weight"),
    "v": Place("attn_v.weight", "self_attn.v_proj.weight"),
    "out": Place("attn_output.weight", "self_attn.o_proj.weight"),
    "gate": Place("ffn_gate.weight", "mlp.gate_proj.weight"),
    "up": Place("ffn_up.weight", "mlp.up_proj.weight"),
    "down": Place("ffn_down.weight", "mlp.down_proj.weight"),
}


def _with_biases(names: Mapping[str, Place]) -> dict[str, Place]:
    """`names` and a bias for each of them."""
    biases = {
        f"{name}_bias": replace(
            place,
            gguf=place.gguf.replace(".weight", ".bias"),
            transformers=place.transformers.replace(".weight", ".bias"),
            fused=tuple(f"{member}_bias" for member in place.fused),
        )
        for name, place in names.items()
    }
    return {**names, **biases}


_QKV, _GATE_UP = ("q", "k", "v"), ("gate", "up")
_BIASES = {
    name: place for name, place in _with_biases({n: _MATRICES[n] for n in _QKV}).items() if name.endswith("bias")
}
"""Those of queries, keys and values, of families that may have them."""
_LLAMA = _MATRICES | {
    "attention_norm": Place("attn_norm.weight", "input_layernorm.weight"),
    "mlp_norm": Place("ffn_norm.weight", "post_attention_layernorm.weight"),
}
_QWEN3 = _LLAMA | {
    "q_norm": Place("attn_q_norm.weight", "self_attn.q_norm.weight"),
    "k_norm": Place("attn_k_norm.weight", "self_attn.k_norm.weight"),
}
_GEMMA3 = _QWEN3 | {
    "mlp_norm": Place("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
    "attention_output_norm": Place("post_attention_norm.weight", "post_attention_layernorm.weight"),
    "mlp_output_norm": Place("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
}
_GEMMA2 = {name: place for name, place in _GEMMA3.items() if name not in ("q_norm", "k_norm")}
_OLMO2 = {name: place for name, place in _GEMMA3.items() if name not in ("attention_norm", "mlp_norm")}
_SEED_OSS = _LLAMA | {"mlp_norm": Place("post_attention_norm.weight", "post_attention_layernorm.weight")}
_PHI3 = (
    _LLAMA
    | dict.fromkeys(_QKV, Place("attn_qkv.weight", "self_attn.qkv_proj.weight", _QKV))
    | dict.fromkeys(_GATE_UP, Place("ffn_up.weight", "mlp.gate_up_proj.weight", _GATE_UP))
)
_GLM = _LLAMA | {name: _PHI3[name] for name in _GATE_UP}
_GLM4 = _GLM | {
    "attention_output_norm": Place("post_attention_norm.weight", "post_self_attn_layernorm.weight"),
    "mlp_output_norm": Place("post_ffw_norm.weight", "post_mlp_layernorm.weight"),
}
_OLMO = {name: place for name, place in _LLAMA.items() if not name.endswith("norm")}
_COHERE = {name: place for name, place in _LLAMA.items() if name != "mlp_norm"}


def _ungated(names: Mapping[str, Place], out: str, up: str, down: str) -> dict[str, Place]:
    """`names` with biases, no gate, and other names of three matrices in transformers models."""
    matrices = {
        name: replace(names[name], transformers=f"{theirs}.weight")
        for name, theirs in (("out", out), ("up", up), ("down", down))
    }
    return _with_biases({name: place for name, place in {**names, **matrices}.items() if name != "gate"})


_STARCODER2 = _ungated(_LLAMA, "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj")
_PHI = _ungated(_COHERE, "self_attn.dense", "mlp.fc1", "mlp.fc2")
_GPT_NEOX = _ungated(
    _LLAMA | dict.fromkeys(_QKV, Place("attn_qkv.weight", "attention.query_key_value.weight", _QKV, by_heads=True)),
    "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
)  # fmt: skip


def _model(embedding: str, norm: str, head: Mapping[str, Place]) -> dict[str, Place]:
    """Tensors outside the layers with other names in transformers models, and a bias of the last norm."""
    last = _with_biases({"final_norm": replace(MODEL["final_norm"], transformers=f"{norm}.weight")})
    return {"embedding": replace(MODEL["embedding"], transformers=f"{embedding}.weight"), **last, **head}


_HEAD = {"head": MODEL["head"]}


def _mixture(names: Mapping[str, Place], router: Place, gate: Place, up: Place, down: Place) -> dict[str, Place]:
    """`names` with experts in place of the MLP."""
    stacked = {"gate": gate, "up": up, "down": down}
    return {**names, "router": router} | {name: replace(place, of_experts=True) for name, place in stacked.items()}


def _experts(prefix: str, *saved: str) -> tuple[Place, Place, Place]:
    """Gate, up and down of experts that are in memory in `prefix`, and in folders as `saved` says."""
    both, down = f"{prefix}.gate_up_proj", f"{prefix}.down_proj"
    return (
        Place("ffn_gate_exps.weight", both, _GATE_UP, saved[0]),
        Place("ffn_up_exps.weight", both, _GATE_UP, saved[1]),
        Place("ffn_down_exps.weight", down, saved=saved[2]),
    )


_OF_EACH = _experts("mlp.experts", *(f"mlp.experts.{{}}.{name}_proj.weight" for name in ("gate", "up", "down")))
_ROUTER = Place("ffn_gate_inp.weight", "mlp.gate.weight")
_QWEN3_MOE = _mixture(_QWEN3, _ROUTER, *_OF_EACH)
_QWEN2_MOE = _mixture(_LLAMA, _ROUTER, *_OF_EACH) | {
    "shared_router": Place("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"),
    **{
        f"shared_{name}": Place(f"ffn_{name}_shexp.weight", f"mlp.shared_expert.{name}_proj.weight")
        for name in ("gate", "up", "down")
    },
}
_MIXTRAL = _mixture(
    _LLAMA,
    replace(_ROUTER, saved="block_sparse_moe.gate.weight"),
    *_experts("mlp.experts", *(f"block_sparse_moe.experts.{{}}.{name}.weight" for name in ("w1", "w3", "w2"))),
)
_GRANITE_MOE = _mixture(
    _LLAMA,
    Place("ffn_gate_inp.weight", "block_sparse_moe.router.weight", saved="block_sparse_moe.router.layer.weight"),
    *_experts(
        "block_sparse_moe.experts",
        *(f"block_sparse_moe.{name}_linear.weight" for name in ("input", "input", "output")),
    ),
)


def _gpt_oss_experts(ours: str, theirs: str) -> dict[str, Place]:
    """The experts' weights or biases, by how our names of them and those of GGUF files end."""
    both = tuple(name + ours for name in _GATE_UP)
    memory = {"gate": ("gate_up", both), "up": ("gate_up", both), "down": ("down", ())}
    return {
        name + ours: Place(
            f"ffn_{name}_exps.{theirs}", f"mlp.experts.{stored}_proj{ours}", fused, of_experts=True, transposed=True
        )
        for name, (stored, fused) in memory.items()
    }


_GPT_OSS = _SEED_OSS | {
    "out_bias": Place("attn_output.bias", "self_attn.o_proj.bias"),
    "sinks": Place("attn_sinks.weight", "self_attn.sinks"),
    "router": Place("ffn_gate_inp.weight", "mlp.router.weight"),
    "router_bias": Place("ffn_gate_inp.bias", "mlp.router.bias"),
    **_gpt_oss_experts("", "weight"),
    **_gpt_oss_experts("_bias", "bias"),
}

Activation = Literal["silu", "gelu_pytorch_tanh", "gelu", "clamped_swiglu"]
"""Of the gate of an MLP, or of up where it has none; the second is GELU by its approximation with tanh, the last that
of gpt-oss."""


@dataclass(frozen=True)
class Family:
    """What the layers of a family are.

    names: of the tensors of a layer by ours: matrices q, k, v, out, up, down and mostly gate, and the router of a
    mixture of experts, which has the last three of every expert, and with shared_router of one more that all tokens
    visit; norms of the inputs of attention and MLP (attention_norm, mlp_norm), of their outputs (attention_output_norm,
    mlp_output_norm), of queries and keys (q_norm, k_norm); sinks, a score of each head beside those of tokens; biases.
    Those that a layer lacks are left out, and so are biases of q, k and v. architecture: what GGUF files call the
    family. model, layer: the tensors outside the layers, and what transformers writes before those of layer {}.
    layer_norm: what transformers calls the epsilon of norms of values less their mean, which may lack weights; without
    it norms are those of root mean squares. parallel: the MLP reads what attention reads, by the same norm where it has
    none of its own, unless the file says otherwise. whole_norms: queries and keys are normed over all heads together.
    interleaved: in GGUF files, the rows of q and k stand so that neighbours are rotated together; neighbours: the same
    wherever they are. qkv_bias: of transformers models that do not say otherwise; a GGUF file shows whether it has any.
    rope_slides: where layers have windows, those without have no rotary positions. no_rope_interval: every so many
    layers, one has no rotary positions, where the file does not say which. activation: of the MLP's gate, where the
    file does not say which. norm_offset: what transformers adds to the weights of norms, which GGUF files have added
    already. root_embeddings: embeddings are multiplied by the root of the hidden size. sliding: which layers have a
    window, if the model has one and does not say which: ``all``; the ``last``, from max_window_layers on; or all but
    one of so many. sliding_theta: the base of the rotary positions of those layers, where it differs from that of the
    others. shares_normed: the shares of the experts that a token visits add up to 1, where the file does not say.
    capped: scores of attention and logits may have soft caps. gguf: what only this family has in GGUF files, by
    transformers' names. defaults: of transformers' configuration, where they are not `DEFAULTS`.
    """

    names: Mapping[str, Place]
    architecture: str
    model: Mapping[str, Place] = field(default_factory=lambda: MODEL)
    layer: str = TRANSFORMERS_LAYER
    layer_norm: str = ""
    parallel: bool = False
    whole_norms: bool = False
    interleaved: bool = False
    neighbours: bool = False
    qkv_bias: bool = False
    no_rope_interval: int | None = None
    rope_slides: bool = False
    activation: Activation = "silu"
    norm_offset: float = 0.0
    root_embeddings: bool = False
    sliding: Literal["all", "last"] | int | None = None
    sliding_theta: float | None = None
    shares_normed: bool = True
    capped: bool = False
    gguf: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mixture(self) -> bool:
        """Whether its layers have experts."""
        return "router" in self.names

    @property
    def shares_expert(self) -> bool:
        """Whether beside the experts that tokens choose there is one that all visit."""
        return "shared_router" in self.names

    @property
    def gated(self) -> bool:
        """Whether its MLPs have a gate beside up."""
        return "gate" in self.names

    @property
    def q_bias(self) -> Place:
        """Where the bias of queries is, if there is one."""
        return {**_BIASES, **self.names}["q_bias"]


DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}

FAMILIES = {
    "llama": Family(_LLAMA, "llama", interleaved=True),
    "mistral": Family(_LLAMA, "llama", interleaved=True, sliding="all", defaults={"sliding_window": 4096}),
    "qwen2": Family(_LLAMA, "qwen2", qkv_bias=True, sliding="last"),
    "qwen3": Family(_QWEN3, "qwen3", sliding="last", defaults={"head_dim": 128}),
    "smollm3": Family(
        _LLAMA, "smollm3", interleaved=True, no_rope_interval=4,
        defaults={"rope_theta": 2_000_000.0, "tie_word_embeddings": True},
    ),
    "olmo2": Family(_OLMO2, "olmo2", whole_norms=True, defaults={"rms_norm_eps": 1e-5}),
    "gemma2": Family(
        _GEMMA2, "gemma2", activation="gelu_pytorch_tanh", norm_offset=1.0, root_embeddings=True,
        sliding=2, capped=True,
        defaults={
            "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Family(
        _GEMMA3, "gemma3", capped=True, activation="gelu_pytorch_tanh", norm_offset=1.0, root_embeddings=True,
        sliding=6, sliding_theta=10_000.0,
        defaults={
            "head_dim": 256, "query_pre_attn_scalar": 256, "rope_theta": 1_000_000.0, "sliding_window": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Family(
        _PHI3, "phi3", sliding="all", defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
    ),
    "gemma": Family(
        _LLAMA, "gemma", activation="gelu_pytorch_tanh", norm_offset=1.0, root_embeddings=True,
        defaults={"head_dim": 256, "tie_word_embeddings": True},
    ),
    "ministral": Family(_LLAMA, "llama", interleaved=True, sliding="all", defaults={"sliding_window": 4096}),
    "exaone4": Family(
        _OLMO2, "exaone4", sliding=4, rope_slides=True, defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096}
    ),
    "seed_oss": Family(_SEED_OSS, "seed_oss", qkv_bias=True, defaults={"head_dim": 128}),
    "glm": Family(
        _GLM, "chatglm", neighbours=True, qkv_bias=True,
        defaults={"head_dim": 128, "rms_norm_eps": 1.5625e-07, "partial_rotary_factor": 0.5},
    ),
    "glm4": Family(
        _GLM4, "glm4", neighbours=True, qkv_bias=True,
        defaults={"head_dim": 128, "rms_norm_eps": 1.5625e-07, "partial_rotary_factor": 0.5},
    ),
    "granite": Family(_LLAMA, "granite", interleaved=True, defaults={"attention_multiplier": 1.0}),
    "qwen3_moe": Family(
        _QWEN3_MOE, "qwen3moe", sliding="last",
        defaults={
            "head_dim": 128, "moe_intermediate_size": 768, "norm_topk_prob": False, "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    "qwen2_moe": Family(
        _QWEN2_MOE, "qwen2moe", qkv_bias=True, sliding="last", shares_normed=False,
        defaults={
            "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "norm_topk_prob": False,
            "num_experts": 60, "num_experts_per_tok": 4,
        },
    ),
    "olmoe": Family(
        _QWEN3_MOE, "olmoe", whole_norms=True, shares_normed=False,
        defaults={"rms_norm_eps": 1e-5, "norm_topk_prob": False, "num_experts": 64, "num_experts_per_tok": 8},
    ),
    "mixtral": Family(
        _MIXTRAL, "llama", interleaved=True, sliding="all",
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    "granitemoe": Family(
        _GRANITE_MOE, "granitemoe", interleaved=True,
        defaults={"attention_multiplier": 1.0, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    "gpt_oss": Family(
        _GPT_OSS, "gpt-oss", qkv_bias=True, activation="clamped_swiglu", sliding=2,
        defaults={
            "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 150_000.0, "sliding_window": 128, "truncate": False,
            "num_local_experts": 128, "num_experts_per_tok": 4, "max_position_embeddings": 131_072,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "starcoder2": Family(
        _STARCODER2, "starcoder2", _model("model.embed_tokens", "model.norm", _HEAD), layer_norm="norm_epsilon",
        qkv_bias=True, activation="gelu_pytorch_tanh", sliding="all",
        defaults={"norm_epsilon": 1e-5, "tie_word_embeddings": True},
    ),
    "phi": Family(
        _PHI, "phi2", _model("model.embed_tokens", "model.final_layernorm", _with_biases(_HEAD)),
        layer_norm="layer_norm_eps", parallel=True, qkv_bias=True, activation="gelu_pytorch_tanh",
        defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    ),
    "gpt_neox": Family(
        _GPT_NEOX, "gptneox",
        _model(
            "gpt_neox.embed_in", "gpt_neox.final_layer_norm",
            {"head": Place("output.weight", "lm_head.weight", saved="embed_out.weight")},
        ),
        "gpt_neox.layers.{}.", layer_norm="layer_norm_eps", parallel=True, qkv_bias=True, activation="gelu",
        defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
    ),
    "cohere": Family(
        _COHERE, "command-r", layer_norm="layer_norm_eps", parallel=True, neighbours=True,
        gguf={"logit_scale": "logit_scale"},
        defaults={
            "layer_norm_eps": 1e-5, "rope_theta": 500_000.0, "logit_scale": 0.0625, "tie_word_embeddings": True,
        },
    ),
    "olmo": Family(
        _OLMO, "olmo", {name: place for name, place in MODEL.items() if name != "final_norm"}, interleaved=True,
        layer_norm="layer_norm_eps", defaults={"layer_norm_eps": 1e-5},
    ),
    "helium": Family(
        _LLAMA, "llama", neighbours=True, defaults={"head_dim": 128, "rms_norm_eps": 1e-8, "rope_theta": 100_000.0}
    ),
}  # fmt: skip
"""By transformers' name. Where GGUF files do not tell two families apart, they are of the first."""


@dataclass(frozen=True)
class Scales:
    """What embeddings, products of queries and keys, the outputs of attention and MLP, and logits are multiplied
    with; attention_cap, logit_cap: what scores of attention and logits are softly kept below, 0: nothing."""

    embedding: float
    softmax: float
    residual: float
    logits: float
    attention_cap: float = 0.0
    logit_cap: float = 0.0


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model's description, the same from a GGUF file, a folder and a loaded model.

    hidden, intermediate, head_dim: numbers of channels; of a mixture of experts `intermediate` is one's. experts: of a
    layer, 0 without; a token visits `experts_used`, and with shares_normed their shares add up to 1; shared: channels
    of one more, which all tokens visit, 0 without. parallel: the MLP reads what attention reads. context: positions
    that the model has. sliding_window: tokens that sliding_layers see, the last of them their own; None without any.
    rope, sliding_rope: the rotary positions of other layers and of those. eos: tokens that end a text. file: what
    messages name. Raises `DamagedFileError` where heads cannot share those of keys and values.
    """

    file: Path | str
    family: str
    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    epsilon: float
    activation: Activation
    scales: Scales
    rope: Rope
    sliding_rope: Rope
    qkv_bias: bool
    tied_head: bool
    layers_without_rope: tuple[int, ...]
    sliding_window: int | None
    sliding_layers: tuple[int, ...]
    bos: int | None
    eos: tuple[int, ...]
    experts: int = 0
    experts_used: int = 0
    shares_normed: bool = False
    shared: int = 0
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            reason = f"{self.heads} heads cannot share {self.kv_heads} of keys and values"
            raise DamagedFileError(f"{self.file} is damaged: {reason}")

    @property
    def description(self) -> Family:
        return FAMILIES[self.family]

    def places(self, layer: int | None) -> dict[str, Place]:
        """Our names of the tensors of a layer, or with None of those outside the layers, and what files call them."""
        if layer is None:
            model = self.description.model
            return {name: place for name, place in model.items() if name != "head" or not self.tied_head}
        gguf, transformers = GGUF_LAYER.format(layer), self.description.layer.format(layer)
        places = {**(_BIASES if self.qkv_bias else {}), **self.description.names}
        return {
            name: replace(
                place,
                gguf=gguf + place.gguf,
                transformers=transformers + place.transformers,
                saved=place.saved and transformers + place.saved,
            )
            for name, place in places.items()
        }

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary positions of a layer; None where it has none."""
        if layer in self.layers_without_rope:
            return None
        return self.sliding_rope if layer in self.sliding_layers else self.rope

    def window_of(self, layer: int) -> int | None:
        """The number of tokens that a layer sees at most; None for all."""
        return self.sliding_window if layer in self.sliding_layers else None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor by our name: [outputs, inputs] of a matrix, of one expert's too; [channels] of a
        norm or bias."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        whole = self.description.whole_norms
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, self.hidden), "head": (self.vocabulary, self.hidden),
            "q": (queries, self.hidden), "k": (keys, self.hidden), "v": (keys, self.hidden),
            "out": (self.hidden, queries), "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden), "down": (self.hidden, self.intermediate),
            "router": (self.experts, self.hidden),
            "q_norm": (queries if whole else self.head_dim,),
            "k_norm": (keys if whole else self.head_dim,),
            "q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,), "sinks": (self.heads,),
            "shared_router": (1, self.hidden), "shared_gate": (self.shared, self.hidden),
            "shared_up": (self.shared, self.hidden), "shared_down": (self.hidden, self.shared),
            "head_bias": (self.vocabulary,), "gate_bias": (self.intermediate,), "up_bias": (self.intermediate,),
            "router_bias": (self.experts,),
        }  # fmt: skip
        return shapes.get(name, (self.hidden,))
