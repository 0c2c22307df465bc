// Constants and structs that cross the border to Python, which reads this file (solm.backends.cpu.border): constants are
// numbers or shifts of one; members have the types below, or are pointers or arrays of them.
#pragma once

#include <cstdint>

namespace solm {

constexpr int PAGE = 16;             // tokens of a page of the KV cache, and pages of a tile of bounds
constexpr int GROUP = 32;            // input channels that share a scale, or a step and a lowest value
constexpr int BLOCK = 64;            // outputs of a matrix that are stored together
constexpr int STRIP = 32;            // outputs of the head that are stored together
constexpr int KNOTS = 21;            // points of an allocation's curves
constexpr int PERCENTAGES = 101;      // limits of a site, for 0 to 100 percent of its channels
constexpr int MAGNITUDES = 1 << 14;  // bins of a histogram of |x|: the upper bits of float32 without its sign
constexpr int HIGH_BITS = 4;         // of a nested weight
constexpr double FULL_BITS = 16;     // of a dense action
constexpr int LEAST_STEPS = 4;       // of a call that is processed in chunks, see prompt.h; with panels more (panel.h)
constexpr int MOST_ROWS = 16;        // steps that share one pass over the head
constexpr int MOST_QUERIES = 32;     // query heads of one KV head
constexpr int MOST_EXPERTS = 1024;  // of a layer
constexpr int MOST_USED = 32;        // experts of a token
constexpr int MOST_LEVELS = 100;     // of one axis
constexpr int MOST_WIDTH = 4096;     // hidden units of a decider
constexpr int MOST_STEPS = 1 << 20;  // of one call
constexpr int MOST_EXACT = 64;       // logits that are exact beside approximate ones
constexpr int SHORTEST_HORIZON = 8;  // steps over which a deviation from the budget is made good at least
constexpr int UNBIASED_STEPS = 16;   // see `without_bias` in solm.policies.levels
constexpr int MESSAGE = 200;         // bytes of an error message

// precision 0: float32, 1: bfloat16, 2: integers. embedding: the tensor type of embeddings, as GGUF numbers it. value_bits: 8
// or 4 with keys in int8 and values in as many bits, or 0. whole_norms: queries and keys are normed over all heads together.
// layer_norms: the norms of streams are those of values less their mean. parallel: an MLP reads what its layer's attention
// reads. positions: the model's context. activation: of the MLP's gate, see `activate`, or without `gated` of its only
// projection up. experts: of a layer, 0 without; `intermediate` is then that of one of them, a token visits experts_used, and
// with shares_normed their shares add up to 1. shared_width: hidden channels of one more expert that all tokens visit, 0
// without. The scales are what embeddings, products of queries and keys, the outputs of attention and MLP, and logits are
// multiplied with. attention_cap, logit_cap: what scores of attention and logits are softly kept below (see `soft_cap`), 0:
// nothing.
struct Sizes {
  int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, positions, precision, embedding, value_bits,
      threads, whole_norms, layer_norms, parallel, activation, gated, experts, experts_used, shares_normed, shared_width;
  float epsilon, embedding_scale, softmax_scale, residual_scale, logit_scale, attention_cap, logit_cap;
};

// A matrix [in, outputs] of a layer, input-major, in one of three forms:
//
// bits 0, no scale: floats.
// bits 0: int8 plus 128 with a `scale` per output, in the order of dot_integer.h.
// bits 4, 5, 6 or 8: packed. A weight is step * number + lowest, with a number of `bits` bits. `grid` holds a float16 step per
// output and `group` (16 or 32) of input channels: [groups, outputs], and lowest = -centre * step. With centre -1 it is
// [groups, 2, outputs], steps and then lowest values. An input channel has one row: the upper 4 bits of all numbers, 64 bytes
// for every 128 outputs and 32 for a last 64; then, of bits above 4, 64 bytes for every 64 * 8 / (bits - 4) outputs with
// the lower bits: field b of a byte, from the lowest on, belongs to the b-th block of 64 outputs.
struct Matrix {
  const void* data;
  const float* scale;
  const uint16_t* grid;
  int32_t outputs, bits, group, centre;
};

// A matrix product whose outputs come from up to three matrices, one after another. All but the last have multiples of 64
// outputs. Floats are one matrix.
struct Product {
  Matrix part[3];
  int32_t parts;
};

// The head [V, H], not transposed: with bits 0 rows of floats, otherwise numbers of 4, 5, 6 or 8 bits in the strips of head.h,
// their upper 4 bits in `data` and the others in `low`. A weight is step * number + lowest. With `group` (16 or 32, a divisor
// of H) there is a float16 step for every output and as many channels, `grid` [strips, H / group, STRIP], and lowest = -centre *
// step; with centre -1 the grid is [strips, H / group, 2, STRIP], steps and then lowest values. With group 0 the step is
// `scale` [strips * STRIP], float32, and 8 bits and centre 128 belong to it.
struct Head {
  const void *data, *low;
  const float* scale;
  const uint16_t* grid;
  int32_t bits, group, centre;
};

// Rotary positions: frequencies [rotary / 2] in radians per position, of the first `rotary` channels of a head. scale: factor
// of cosines and sines.
struct Rope {
  const float* frequencies;
  int32_t rotary;
  float scale;
};

// Weights and biases [H] in float32 of the norm of a stream. Without weights there is no norm, without biases none are added.
struct Norm {
  const float *weight, *bias;
};

// The MLP of a layer, or one of its experts: gate_up [H, 2 I] or without a gate [H, I], down [I, H], with biases in float32 or
// null.
struct Mlp {
  Product gate_up, down;
  const float *gate_up_bias, *down_bias;
};

// qkv [H, (heads + 2 kv_heads) D], out [heads D, H]. mlps: one, or all experts. router: null, or float32 [experts, H], by whose
// products with its input a token chooses experts. shared: the expert of all tokens, if there is one, and shared_router [H], whose
// product with its input says what share of its results counts. rope: which of the model's rotary positions
// queries and keys have, -1: none. window: the last tokens that attention sees, 0: all. sinks [heads]: a score beside those of
// tokens, whose weight goes to no value. Norms, of the inputs and of the outputs of attention and MLP, sinks and biases are
// float32 or null.
struct Layer {
  Product qkv, out;
  const Mlp* mlps;
  Mlp shared;
  int32_t rope, window;
  Norm attention_norm, mlp_norm;
  const float *attention_output_norm, *mlp_output_norm, *q_norm, *k_norm, *qkv_bias, *out_bias, *sinks, *router, *router_bias,
      *shared_router;
};

struct Model {
  Sizes sizes;
  const Layer* layers;
  const void* embedding;  // [V, H], blocks of the type sizes.embedding row by row
  Head head;
  const float* head_bias;  // [V] or null
  Norm final_norm;
  const Rope* ropes;
  int32_t rope_count;
};

// Where channels are dropped: what gate and up read, what down reads, and, with `projections`, what the query, key and value
// projections read and what the output projection of attention reads.
enum Site : int32_t { INPUT = 0, HIDDEN = 1, QKV = 2, OUT = 3 };
constexpr int SITES = 4;
constexpr int COUNTED = 5;  // of a histogram: the sites, and experts

// How an action is carried out (solm.core.sparsity). input_site, hidden_site: flags of the MLP's sites. projections: the flag of
// those of attention. group: channels that share a rounding scale, 0 for all. weight_bits: the bits of an action are those of
// weights. allocation: null, or curves [layers * heads + layers, KNOTS], first of pages per layer and KV head (heads 1: of all
// heads), then of channels per layer. own_sites: `layers` more curves follow for each of so many sites after INPUT, and those
// before are INPUT's. bit_curves: the flag of `layers` curves more for each site of the MLP: below a half a step reads only the
// upper bits of the weights there. upper_bits_part: what a channel counts then. experts: the flag of
// the share of the MLP being that of the experts that a step visits, and not of channels. input_part: what input channels count of the
// MLP's share where both of its sites are in use. projection_part: what the projections of attention count of the share of
// channels. thresholds: null, or [layers, 2 or with projections SITES, PERCENTAGES], the least |x| that a step keeps at a site
// whose share is that percentage, in place of an exact number of channels; with `experts` [layers, 1, PERCENTAGES], see `held`.
struct SparsityRules {
  int32_t sinks, window, input_site, hidden_site, hidden_power, group, weight_bits, layers, heads, own_sites, projections,
      bit_curves, experts;
  double input_part, projection_part, upper_bits_part;
  const double* allocation;
  const float* thresholds;
};

// A value policy (solm.policies.value_policy). Its network: read [hidden + 3, width] and bias, head [3, width] and bias, scale
// and trust [3]. Per axis: levels as numbers of an action and as shares; the cost of a level in nats, which is fixed_cost +
// sensitivity * own_cost; and `curve`, the average share, ascending, that tokens take at every one of `prices` [points].
// With `layer` beyond the last one: a schedule (solm.policies.schedules.Static, under thresholds Paced), of which
// `levels` and `sizes` are all there is.
struct Decider {
  int32_t layer, width, hidden, points, sizes[3];
  const float *read, *read_bias, *head, *head_bias, *scale, *trust;
  const double *levels[3], *shares[3], *own_cost[3], *fixed_cost[3], *curve[3], *prices;
};

// The budget of a row (solm.backends.budgets). Shares per axis: target, the average asked for; spent, the sum over counted
// steps; expected, the sum that these steps' prices were set for; early, the sum that the layers before the decider's would have
// spent as the whole model; shift, not used here. counted: steps that could be controlled on an axis; taken: all steps;
// horizon: steps that the budget is meant for; previous: last action.
struct RowState {
  const Decider* decider;
  double target[3], spent[3], expected[3], early[3], shift[3];
  int64_t counted[3], taken, horizon, previous;
};

// Layers [first, last) of `count` steps of each of `rows` rows, or with counts [rows], which may be null, of so many. Step q of
// row r processes tokens[r, q] at position lengths[r] + q of caches[r]. What arrays hold for steps that a row does not have is
// neither read nor written.
//
// decide 0: all rows follow keep [rows, count, 3] (attention, MLP, bits; null: dense). 1: rows with a decider decide for
// themselves, with a static schedule in the layers before the decider's; the call must cover all layers. On axes that are
// not controllable steps run dense. realised [rows, count, 3] receives the realised shares; with first > 0 those of these layers are
// added to it. actions [rows, count] receives the decided actions, -1 for others. A call that reaches the last layer adds
// its steps to `states`.
// blocks: neighbouring steps of a row share the attention of their queries, which differs in the last bits from that of single
// steps.
// With thresholds, the share of the MLP is counted while the steps run, and corrected in `states` after them.
//
// histogram: null, or [layers, COUNTED, MAGNITUDES], to which the call adds how many inputs of every site lie in every bin, and
// after these how many experts: see `held`.
//
// stream [rows, count, H] is read with first > 0, and written: the residual stream, or after the last layer the input of the
// head; null where nobody wants it, in calls of all layers. logits [rows, logit_steps, outputs] receives those of the first
// `outputs` tokens of the vocabulary, after the last layer in the last logit_steps of the `count` steps.
// exact_largest: 0, or how many of a step's largest logits are exact, at most MOST_EXACT, where others may be approximate.
// exact_rows: null, or flags [rows] of those whose logits are all exact even then. adaptive_head: all logits may be exact where
// earlier calls have shown that approximate ones take longer.
struct Call {
  const SparsityRules* rules;
  int32_t rows, count, first, last, decide, exact_largest, logit_steps, outputs, adaptive_head, blocks;
  void* const* caches;
  const int32_t* counts;
  const int64_t *tokens, *lengths;
  const double* keep;
  RowState* states;
  int64_t* actions;
  double* realised;
  float *stream, *logits;
  uint32_t* histogram;
  const uint8_t* exact_rows;
  char* message;  // [MESSAGE], what is wrong where a call is refused
};

}  // namespace solm
