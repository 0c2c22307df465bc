// Checks at the border. Each returns whether the arguments are valid, and writes what is wrong to `message` [MESSAGE].
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdio>

#include "engine.h"
#include "gguf_types.h"
#include "layer_math.h"
#include "repack.h"

namespace solm {

template <typename... Values>
bool refuse(char* message, const char* format, Values... values) {
  std::snprintf(message, MESSAGE, format, values...);
  return false;
}

// A matrix product [in, out].
inline bool valid_product(const Sizes& s, const Product& p, int in, int out, const char* name, char* message) {
  if (p.parts < 1 || p.parts > (s.precision == 2 ? 3 : 1))
    return refuse(message, "%s must have 1 to 3 parts, and of floats 1, got %d", name, p.parts);
  int64_t outputs = 0;
  for (int i = 0; i < p.parts; ++i) {
    const Matrix& m = p.part[i];
    if (!m.data) return refuse(message, "%s has no weights", name);
    if (m.outputs < 1 || ((i + 1 < p.parts || m.bits) && m.outputs % BLOCK))
      return refuse(message, "outputs of %s must be a multiple of %d, got %d", name, BLOCK, m.outputs);
    outputs += m.outputs;
    if (!m.bits) {
      if ((s.precision == 2) != (m.scale != nullptr)) return refuse(message, "%s needs scales with int8 and no others", name);
      continue;
    }
    if (s.precision != 2 || !m.grid || !(m.bits == 4 || m.bits == 5 || m.bits == 6 || m.bits == 8))
      return refuse(message, "packed weights of %s need a grid and 4, 5, 6 or 8 bits, got %d", name, m.bits);
    if ((m.group != GROUP / 2 && m.group != GROUP) || in % m.group)
      return refuse(message, "%d inputs of %s need groups of %d or %d that divide them, got %d", in, name, GROUP / 2, GROUP,
                    m.group);
    if (m.centre < -1 || m.centre > 255) return refuse(message, "the centre of %s must be in [-1, 255], got %d", name, m.centre);
  }
  if (outputs != out) return refuse(message, "%s needs %d outputs, got %lld", name, out, static_cast<long long>(outputs));
  return true;
}

inline bool valid_head(const Sizes& s, const Head& h, char* message) {
  if (!h.data) return refuse(message, "the head has no weights");
  if ((s.precision == 2) != (h.bits > 0)) return refuse(message, "the head needs integers where layers have them");
  if (!h.bits) return true;
  if (!(h.bits == 4 || h.bits == 5 || h.bits == 6 || h.bits == 8))
    return refuse(message, "the head's bits must be 4, 5, 6 or 8, got %d", h.bits);
  if ((h.bits > HIGH_BITS) != (h.low != nullptr)) return refuse(message, "the head needs lower bits above 4 bits and no others");
  if (!h.group)
    return (h.scale && h.bits == 8 && h.centre == 128) ||
           refuse(message, "a head without groups needs scales, 8 bits and centre 128");
  if ((h.group != GROUP / 2 && h.group != GROUP) || s.hidden % h.group)
    return refuse(message, "a head of %d channels needs groups of %d or %d that divide them, got %d", s.hidden, GROUP / 2, GROUP,
                  h.group);
  if (!h.grid) return refuse(message, "a head with groups needs a grid");
  if (h.centre < -1 || h.centre > 255) return refuse(message, "the head's centre must be in [-1, 255], got %d", h.centre);
  return true;
}

inline bool valid_model(const Model& model, char* message) {
  const Sizes& s = model.sizes;
  const struct {
    const char* name;
    int value, least, most;
  } ranges[] = {
      {"layers", s.layers, 1, 1 << 16},       {"hidden", s.hidden, 1, 1 << 24},
      {"intermediate", s.intermediate, 1, 1 << 24}, {"heads", s.heads, 1, 1 << 16},
      {"kv_heads", s.kv_heads, 1, s.heads},   {"head_dim", s.head_dim, 16, 1 << 16},
      {"vocabulary", s.vocabulary, 1, 1 << 28}, {"positions", s.positions, 1, 1 << 28},
      {"precision", s.precision, 0, 2},
      {"activation", s.activation, SILU, s.gated ? CLAMPED_SWIGLU : GELU}, {"ropes", model.rope_count, 0, s.layers},
      {"experts", s.experts, 0, MOST_EXPERTS},
      {"experts_used", s.experts_used, s.experts ? 1 : 0, std::min(s.experts, MOST_USED)},
      {"shared_width", s.shared_width, 0, s.experts ? 1 << 24 : 0},
      {"parallel", s.parallel, 0, s.experts ? 0 : 1},
      {"value_bits", s.value_bits, 0, s.precision >= 2 ? 8 : 0}, {"threads", s.threads, 1, 1 << 12},
  };
  for (const auto& range : ranges)
    if (range.value < range.least || range.value > range.most)
      return refuse(message, "%s must be in [%d, %d], got %d", range.name, range.least, range.most, range.value);
  for (const float cap : {s.attention_cap, s.logit_cap})
    if (!(cap >= 0 && cap <= FLT_MAX)) return refuse(message, "soft caps must be finite and at least 0, got %g", cap);
  const TypeInfo embedding = type_info(s.embedding);
  if (!embedding.values || s.hidden % embedding.values || !model.embedding)
    return refuse(message, "embeddings of %d channels cannot be of type %d", s.hidden, s.embedding);
  if (!model.layers || !model.final_norm.weight || (model.rope_count && !model.ropes))
    return refuse(message, "layers, the last norm or rotary frequencies are missing");
  if (s.value_bits % 4) return refuse(message, "value_bits must be 0, 4 or 8, got %d", s.value_bits);
  if (s.value_bits && s.head_dim > 512)  // sums of AVX2 would overflow
    return refuse(message, "head_dim must be at most 512 with keys in int8, got %d", s.head_dim);
  if (int64_t(s.heads + 2 * int64_t(s.kv_heads)) * s.head_dim > 1 << 24)
    return refuse(message, "%d heads of %d are too many", s.heads, s.head_dim);
  for (int i = 0; i < model.rope_count; ++i) {
    const Rope& rope = model.ropes[i];
    if (!rope.frequencies || rope.rotary < 2 || rope.rotary > s.head_dim || rope.rotary % 2)
      return refuse(message, "rotary must be even and in [2, %d], got %d", s.head_dim, rope.rotary);
  }
  if (s.head_dim % 16) return refuse(message, "head_dim must be a multiple of 16, got %d", s.head_dim);
  if (s.heads % s.kv_heads || s.heads / s.kv_heads > MOST_QUERIES)
    return refuse(message, "heads must be 1 to %d times kv_heads %d, got %d", MOST_QUERIES, s.kv_heads, s.heads);
  for (int l = 0; l < s.layers; ++l) {
    const Layer& layer = model.layers[l];
    const int D = s.head_dim, H = s.hidden, I = s.intermediate;
    if (layer.rope < -1 || layer.rope >= model.rope_count)
      return refuse(message, "rope must be in [-1, %d], got %d", model.rope_count - 1, layer.rope);
    if (layer.window < 0 || layer.window > 1 << 28)
      return refuse(message, "a layer's window must be at least 0, got %d", layer.window);
    if (!valid_product(s, layer.qkv, H, (s.heads + 2 * s.kv_heads) * D, "qkv", message) ||
        !valid_product(s, layer.out, s.heads * D, H, "out", message))
      return false;
    if (!layer.mlps || (s.experts > 0) != (layer.router != nullptr) || (s.shared_width > 0) != (layer.shared_router != nullptr))
      return refuse(message, "a layer needs MLPs, and with several of them, or one that is shared, a router");
    if (s.parallel && !layer.mlp_norm.weight) return refuse(message, "an MLP beside attention needs a norm");
    const auto valid_mlp = [&](const Mlp& mlp, int width) {
      return valid_product(s, mlp.gate_up, H, gate_up_outputs(s, width), "gate_up", message) &&
             valid_product(s, mlp.down, width, H, "down", message);
    };
    for (int i = 0; i < std::max(1, s.experts); ++i)
      if (!valid_mlp(layer.mlps[i], I)) return false;
    if (s.shared_width && !valid_mlp(layer.shared, s.shared_width)) return false;
  }
  return valid_head(s, model.head, message);
}

inline bool valid_rules(const Engine& e, const SparsityRules& rules, char* message) {
  const Sizes& s = e.s;
  if (rules.sinks < 0 || rules.sinks > 1 << 28) return refuse(message, "sinks must be at least 0, got %d", rules.sinks);
  if (rules.window < PAGE || rules.window > 1 << 28)
    return refuse(message, "window must be at least %d, got %d", PAGE, rules.window);
  if (rules.group < 0) return refuse(message, "bits_group must be at least 1, got %d", rules.group);
  if (rules.weight_bits && !e.nested)
    return refuse(message, "bits of weights need MLP weights whose upper 4 bits can be read alone");
  if (rules.allocation && rules.layers != s.layers)
    return refuse(message, "the allocation is for %d layers, and the model has %d", rules.layers, s.layers);
  if (rules.heads != 1 && (!rules.allocation || rules.heads != s.kv_heads))
    return refuse(message, "the allocation is for %d KV heads, and the model has %d", rules.heads, s.kv_heads);
  if (rules.projections && (!rules.input_site || !rules.hidden_site))
    return refuse(message, "dropping inputs of attention's projections needs both sites of the MLP");
  if (rules.own_sites < 0 || rules.own_sites >= (rules.projections ? SITES : 2))
    return refuse(message, "an allocation has curves of its own for %d sites, got %d", rules.projections ? 3 : 1, rules.own_sites);
  if (rules.own_sites && (!rules.allocation || !rules.input_site || !rules.hidden_site))
    return refuse(message, "an allocation of hidden channels needs both sites of the MLP");
  if (rules.bit_curves && (!rules.own_sites || !rules.weight_bits))
    return refuse(message, "an allocation of weight bits needs one of hidden channels and bits of weights");
  if (rules.bit_curves && !(rules.upper_bits_part > 0 && rules.upper_bits_part <= 1))
    return refuse(message, "upper_bits_part must be above 0 and at most 1, got %g", rules.upper_bits_part);
  if (rules.thresholds && rules.layers != s.layers)
    return refuse(message, "the thresholds are for %d layers, and the model has %d", rules.layers, s.layers);
  for (int i = 0; rules.thresholds && i < threshold_sites(rules) * s.layers * PERCENTAGES; ++i)
    if (!(rules.thresholds[i] >= 0 && rules.thresholds[i] <= FLT_MAX))
      return refuse(message, "thresholds must be finite and at least 0, got %g", rules.thresholds[i]);
  if (!(rules.input_part > 0 && rules.input_part < 1))
    return refuse(message, "input_part must lie between 0 and 1, got %g", rules.input_part);
  if (rules.experts && (!s.experts || rules.input_site || rules.hidden_site))
    return refuse(message, "a share of the experts needs a mixture of them, and goes with no share of channels");
  if (rules.projections && !(rules.projection_part > 0 && rules.projection_part < 1))
    return refuse(message, "projection_part must lie between 0 and 1, got %g", rules.projection_part);
  return true;
}

inline bool valid_decider(const Sizes& s, const Decider& d, char* message) {
  if (d.layer < 0 || d.layer > s.layers)
    return refuse(message, "the policy's layer must be in [0, %d], got %d", s.layers, d.layer);
  for (const int size : d.sizes)
    if (size < 1 || size > MOST_LEVELS)
      return refuse(message, "an axis must have 1 to %d levels, got %d", MOST_LEVELS, size);
  if (d.layer == s.layers) return true;
  if (d.hidden != s.hidden) return refuse(message, "the policy reads %d channels, and the model has %d", d.hidden, s.hidden);
  if (d.width < 1 || d.width > MOST_WIDTH)
    return refuse(message, "the policy's width must be in [1, %d], got %d", MOST_WIDTH, d.width);
  if (d.points < 1) return refuse(message, "the policy's price curves need at least 1 point, got %d", d.points);
  return true;
}

// The states of rows that decide.
inline bool valid_states(const Engine& e, const Call& c, char* message) {
  const Decider *last = nullptr, *first = nullptr;
  for (int r = 0; r < c.rows; ++r) {
    const RowState& row = c.states[r];
    if (!row.decider) continue;
    if (row.decider != last && !valid_decider(e.s, *row.decider, message)) return false;
    last = row.decider;
    if (!first && last->layer < e.s.layers) first = last;
    if (first && last->layer < e.s.layers && last->layer != first->layer)
      return refuse(message, "policies of one step must decide before the same layer, got %d and %d", first->layer,
                    row.decider->layer);
    for (int axis = 0; axis < 3; ++axis)
      if (!(row.target[axis] >= 0 && row.target[axis] <= 1) || !std::isfinite(row.spent[axis]) ||
          !std::isfinite(row.expected[axis]) || !std::isfinite(row.early[axis]))
        return refuse(message, "row %d: budget shares must be in [0, 1] and what was spent finite, got %g and %g", r,
                      row.target[axis], row.spent[axis]);
    const auto [fewest, most] = std::minmax({row.counted[0], row.counted[1], row.counted[2], row.taken});
    if (fewest < 0 || row.horizon < 1 || std::max(most, row.horizon) > int64_t(1) << 40)
      return refuse(message,
                    "row %d: horizon must be at least 1 and steps at least 0, got horizon %lld and steps %lld to %lld",
                    r, static_cast<long long>(row.horizon), static_cast<long long>(fewest),
                    static_cast<long long>(most));
  }
  if (first && (c.first > 0 || c.last < e.s.layers))
    return refuse(message, "a policy decides in calls of all layers [0, %d), got [%d, %d)", e.s.layers, c.first, c.last);
  return true;
}

inline bool valid_cache(const Engine& e, const Cache* cache, char* message) {
  if (!cache) return refuse(message, "a cache is missing");
  if (cache->mutex != e.mutex) return refuse(message, "a cache belongs to another engine");
  return true;
}

inline bool valid_call(const Engine& e, const Call& c, char* message) {
  if (c.rows < 1 || c.count < 1 || int64_t(c.rows) * c.count > MOST_STEPS)
    return refuse(message, "a call needs 1 to %d steps, got %d rows of %d", MOST_STEPS, c.rows, c.count);
  if (c.first < 0 || c.first >= c.last || c.last > e.s.layers)
    return refuse(message, "layers must be within [0, %d), got [%d, %d)", e.s.layers, c.first, c.last);
  if (c.logit_steps < 0 || c.logit_steps > c.count)
    return refuse(message, "logit_steps must be in [0, %d], got %d", c.count, c.logit_steps);
  if (c.exact_largest < 0 || c.exact_largest > MOST_EXACT)
    return refuse(message, "exact_largest must be in [0, %d], got %d", MOST_EXACT, c.exact_largest);
  if (!valid_rules(e, *c.rules, message)) return false;
  const bool part = c.first > 0 || c.last < e.s.layers;
  if (part && !c.stream) return refuse(message, "a call of layers [%d, %d) needs a stream", c.first, c.last);
  if (c.last == e.s.layers && c.logit_steps && !c.logits) return refuse(message, "there is no room for logits");
  if (c.outputs < 1 || c.outputs > e.s.vocabulary)
    return refuse(message, "outputs must be in [1, %d], got %d", e.s.vocabulary, c.outputs);
  for (int r = 0; r < c.rows; ++r) {
    const auto* cache = static_cast<const Cache*>(c.caches[r]);
    if (!valid_cache(e, cache, message)) return false;
    if (std::find(c.caches, c.caches + r, c.caches[r]) != c.caches + r)
      return refuse(message, "row %d has the cache of a row before it", r);
    if (steps_of(c, r) < 1 || steps_of(c, r) > c.count)
      return refuse(message, "row %d: its steps must be in [1, %d], got %d", r, c.count, steps_of(c, r));
    const int64_t most = std::min<int64_t>(int64_t(cache->capacity) * PAGE, e.s.positions) - steps_of(c, r);
    if (c.lengths[r] < 0 || c.lengths[r] > most)
      return refuse(message, "row %d: a cache of %d tokens and a model of %d positions take %d more from [0, %lld], got %lld",
                    r, cache->capacity * PAGE, e.s.positions, steps_of(c, r), static_cast<long long>(most),
                    static_cast<long long>(c.lengths[r]));
  }
  for (int r = 0; r < c.rows; ++r)
    for (int i = r * c.count; i < r * c.count + steps_of(c, r); ++i) {
      if (c.tokens[i] < 0 || c.tokens[i] >= e.s.vocabulary)
        return refuse(message, "token ids must be in [0, %d], got %lld", e.s.vocabulary - 1,
                      static_cast<long long>(c.tokens[i]));
      if (!c.keep) continue;
      const double* k = c.keep + 3 * size_t(i);
      // Written so that NaN is refused too.
      if (!(k[0] >= 0 && k[0] <= 1 && k[1] >= 0 && k[1] <= 1 && k[2] >= 2 && k[2] <= FULL_BITS))
        return refuse(message, "keep must be shares in [0, 1] and bits in [2, %g], got %g, %g, %g", FULL_BITS, k[0], k[1], k[2]);
    }
  return !c.decide || valid_states(e, c, message);
}

inline bool valid_tensor(const RawTensor& tensor, size_t bytes, char* message) {
  constexpr int MOST = 1 << 30;
  const TypeInfo info = type_info(tensor.type);
  if (!info.values) return refuse(message, "tensor type %d is not supported", tensor.type);
  if (tensor.outputs < 1 || tensor.outputs > MOST || tensor.inputs < 1 || tensor.inputs > MOST || tensor.inputs % info.values)
    return refuse(message, "[%d, %d] is no shape of a tensor with blocks of %d", tensor.outputs, tensor.inputs, info.values);
  const size_t wanted = size_t(tensor.outputs) * tensor.row_bytes();
  if (!tensor.blocks || bytes != wanted) return refuse(message, "it must have %zu bytes, not %zu", wanted, bytes);
  for (int o = 0; tensor.order && o < tensor.outputs; ++o)
    if (tensor.order[o] < 0 || tensor.order[o] >= tensor.outputs)
      return refuse(message, "row %d is not among its %d", tensor.order[o], tensor.outputs);
  return true;
}

inline bool valid_place(const RawTensor& tensor, const PackedPlace& to, char* message) {
  const bool grouped = to.target == NESTED || to.target == INT4, packed = to.target == OWN || grouped;
  if (to.target < OWN || to.target > INT4) return refuse(message, "unknown target %d", to.target);
  if (to.target == OWN && !type_info(tensor.type).bits) return refuse(message, "floats have no numbers of their own");
  if (grouped && tensor.inputs % GROUP)
    return refuse(message, "weights in groups need inputs in multiples of %d, not %d", GROUP, tensor.inputs);
  if (to.first < 0 || to.total < 1 || to.first > to.total || tensor.outputs > to.total - to.first)
    return refuse(message, "outputs %d and the next %d are not among %d", to.first, tensor.outputs, to.total);
  if (packed && to.total % BLOCK) return refuse(message, "packed outputs come in multiples of %d, not %d", BLOCK, to.total);
  if (!to.data || (packed && !to.grid) || (to.target == INT8 && !to.scale)) return refuse(message, "no memory was given");
  if (to.threads < 1 || to.threads > 1 << 12) return refuse(message, "threads must be in [1, %d], got %d", 1 << 12, to.threads);
  return true;
}

}  // namespace solm
