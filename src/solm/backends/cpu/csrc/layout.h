// The text by which Python checks that it declares the same structs and constants: a line per struct, field and constant.
#pragma once

#include <cstddef>
#include <string>

#include "structs.h"

namespace solm {

inline void describe(std::string& text, const char* name, long long value) {
  text += std::string(name) + " = " + std::to_string(value) + "\n";
}
inline void describe(std::string& text, const char* name, size_t offset, size_t size) {
  text += std::string(name) + " at " + std::to_string(offset) + " of " + std::to_string(size) + " bytes\n";
}

#define SOLM_CONSTANT(name) describe(text, #name, static_cast<long long>(name));
#define SOLM_STRUCT(type) describe(text, #type, 0, sizeof(type));
#define SOLM_FIELD(type, field) describe(text, #type "." #field, offsetof(type, field), sizeof(type::field));

inline std::string layout() {
  std::string text;
  SOLM_CONSTANT(PAGE) SOLM_CONSTANT(GROUP) SOLM_CONSTANT(BLOCK) SOLM_CONSTANT(STRIP) SOLM_CONSTANT(KNOTS)
  SOLM_CONSTANT(PERCENTAGES) SOLM_CONSTANT(MAGNITUDES) SOLM_CONSTANT(SITES)
  SOLM_CONSTANT(HIGH_BITS) SOLM_CONSTANT(FULL_BITS) SOLM_CONSTANT(LEAST_STEPS) SOLM_CONSTANT(MOST_ROWS) SOLM_CONSTANT(MOST_QUERIES)
  SOLM_CONSTANT(MOST_LEVELS) SOLM_CONSTANT(MOST_WIDTH) SOLM_CONSTANT(MOST_STEPS) SOLM_CONSTANT(MOST_EXACT)
  SOLM_CONSTANT(SHORTEST_HORIZON) SOLM_CONSTANT(UNBIASED_STEPS) SOLM_CONSTANT(MESSAGE)
  SOLM_STRUCT(Sizes)
  SOLM_FIELD(Sizes, layers) SOLM_FIELD(Sizes, hidden) SOLM_FIELD(Sizes, intermediate) SOLM_FIELD(Sizes, heads)
  SOLM_FIELD(Sizes, kv_heads) SOLM_FIELD(Sizes, head_dim) SOLM_FIELD(Sizes, vocabulary) SOLM_FIELD(Sizes, positions)
  SOLM_FIELD(Sizes, precision) SOLM_FIELD(Sizes, embedding) SOLM_FIELD(Sizes, kv_int8) SOLM_FIELD(Sizes, threads)
  SOLM_FIELD(Sizes, whole_norms) SOLM_FIELD(Sizes, activation) SOLM_FIELD(Sizes, epsilon)
  SOLM_FIELD(Sizes, embedding_scale) SOLM_FIELD(Sizes, softmax_scale) SOLM_FIELD(Sizes, residual_scale)
  SOLM_FIELD(Sizes, logit_scale)
  SOLM_STRUCT(Matrix)
  SOLM_FIELD(Matrix, data) SOLM_FIELD(Matrix, scale) SOLM_FIELD(Matrix, grid) SOLM_FIELD(Matrix, outputs)
  SOLM_FIELD(Matrix, bits) SOLM_FIELD(Matrix, group) SOLM_FIELD(Matrix, centre)
  SOLM_STRUCT(Product)
  SOLM_FIELD(Product, part) SOLM_FIELD(Product, parts)
  SOLM_STRUCT(Head)
  SOLM_FIELD(Head, data) SOLM_FIELD(Head, low) SOLM_FIELD(Head, scale) SOLM_FIELD(Head, grid) SOLM_FIELD(Head, bits)
  SOLM_FIELD(Head, group) SOLM_FIELD(Head, centre)
  SOLM_STRUCT(Rope)
  SOLM_FIELD(Rope, frequencies) SOLM_FIELD(Rope, rotary) SOLM_FIELD(Rope, scale)
  SOLM_STRUCT(Layer)
  SOLM_FIELD(Layer, qkv) SOLM_FIELD(Layer, out) SOLM_FIELD(Layer, gate_up) SOLM_FIELD(Layer, down)
  SOLM_FIELD(Layer, rope) SOLM_FIELD(Layer, window)
  SOLM_FIELD(Layer, attention_norm) SOLM_FIELD(Layer, attention_output_norm) SOLM_FIELD(Layer, mlp_norm)
  SOLM_FIELD(Layer, mlp_output_norm) SOLM_FIELD(Layer, q_norm) SOLM_FIELD(Layer, k_norm) SOLM_FIELD(Layer, qkv_bias)
  SOLM_STRUCT(Model)
  SOLM_FIELD(Model, sizes) SOLM_FIELD(Model, layers) SOLM_FIELD(Model, embedding) SOLM_FIELD(Model, head)
  SOLM_FIELD(Model, final_norm) SOLM_FIELD(Model, ropes) SOLM_FIELD(Model, rope_count)
  SOLM_STRUCT(SparsityRules)
  SOLM_FIELD(SparsityRules, sinks) SOLM_FIELD(SparsityRules, window) SOLM_FIELD(SparsityRules, input_site)
  SOLM_FIELD(SparsityRules, hidden_site) SOLM_FIELD(SparsityRules, hidden_power) SOLM_FIELD(SparsityRules, group)
  SOLM_FIELD(SparsityRules, weight_bits) SOLM_FIELD(SparsityRules, layers) SOLM_FIELD(SparsityRules, heads)
  SOLM_FIELD(SparsityRules, own_sites) SOLM_FIELD(SparsityRules, projections) SOLM_FIELD(SparsityRules, bit_curves)
  SOLM_FIELD(SparsityRules, input_part) SOLM_FIELD(SparsityRules, projection_part)
  SOLM_FIELD(SparsityRules, upper_bits_part) SOLM_FIELD(SparsityRules, allocation)
  SOLM_FIELD(SparsityRules, thresholds)
  SOLM_STRUCT(Decider)
  SOLM_FIELD(Decider, layer) SOLM_FIELD(Decider, width) SOLM_FIELD(Decider, hidden) SOLM_FIELD(Decider, clamp)
  SOLM_FIELD(Decider, points) SOLM_FIELD(Decider, sizes) SOLM_FIELD(Decider, read) SOLM_FIELD(Decider, read_bias)
  SOLM_FIELD(Decider, head) SOLM_FIELD(Decider, head_bias) SOLM_FIELD(Decider, scale) SOLM_FIELD(Decider, trust)
  SOLM_FIELD(Decider, levels) SOLM_FIELD(Decider, shares) SOLM_FIELD(Decider, own_cost) SOLM_FIELD(Decider, fixed_cost)
  SOLM_FIELD(Decider, curve) SOLM_FIELD(Decider, prices)
  SOLM_STRUCT(RowState)
  SOLM_FIELD(RowState, decider) SOLM_FIELD(RowState, target) SOLM_FIELD(RowState, spent) SOLM_FIELD(RowState, expected)
  SOLM_FIELD(RowState, early) SOLM_FIELD(RowState, shift) SOLM_FIELD(RowState, counted) SOLM_FIELD(RowState, taken)
  SOLM_FIELD(RowState, horizon) SOLM_FIELD(RowState, previous)
  SOLM_STRUCT(Call)
  SOLM_FIELD(Call, rules) SOLM_FIELD(Call, rows) SOLM_FIELD(Call, count) SOLM_FIELD(Call, first) SOLM_FIELD(Call, last)
  SOLM_FIELD(Call, decide) SOLM_FIELD(Call, exact_largest) SOLM_FIELD(Call, logit_steps) SOLM_FIELD(Call, adaptive_head)
  SOLM_FIELD(Call, caches)
  SOLM_FIELD(Call, tokens) SOLM_FIELD(Call, lengths) SOLM_FIELD(Call, keep) SOLM_FIELD(Call, states)
  SOLM_FIELD(Call, actions) SOLM_FIELD(Call, realised) SOLM_FIELD(Call, stream) SOLM_FIELD(Call, logits)
  SOLM_FIELD(Call, histogram) SOLM_FIELD(Call, exact_rows) SOLM_FIELD(Call, message)
  return text;
}

#undef SOLM_CONSTANT
#undef SOLM_STRUCT
#undef SOLM_FIELD

}  // namespace solm
