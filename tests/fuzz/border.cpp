// The engine's border under libFuzzer with sanitizers: tensors of files are turned into weights, and caches and calls of a tiny
// model are made of whatever bytes come. Each is computed within its memory, of which there is not a byte more than the border
// asks for, or refused. `make fuzz` builds and runs it.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "gguf_types.h"
#include "repack.h"
#include "structs.h"

using namespace solm;

extern "C" {
int32_t solm_repack(int32_t, const void*, size_t, int32_t, int32_t, const int32_t*, int32_t, int32_t, int32_t, void*, float*,
                    uint16_t*, int32_t, char*);
int32_t solm_dequantise(int32_t, const void*, size_t, int32_t, int32_t, const int64_t*, int64_t, float*, char*);
int32_t solm_engine(const Model*, void**, char*);
int32_t solm_cache(void*, const void*, int64_t, int64_t, void**, char*);
void solm_cache_free(void*);
int32_t solm_run(void*, const Call*);
}

namespace {

char message[MESSAGE];

// Memory of its own, beyond whose end a sanitizer looks, in whole lines from its beginning on.
template <typename T>
struct Memory {
  T* at = nullptr;
  explicit Memory(size_t count) {
    if (posix_memalign(reinterpret_cast<void**>(&at), 64, std::max<size_t>(1, count * sizeof(T)))) std::abort();
    std::memset(at, 0, count * sizeof(T));
  }
  ~Memory() { std::free(at); }
  Memory(const Memory&) = delete;
};

// Mostly 0.
int slip(FuzzedDataProvider& in) { return in.ConsumeIntegralInRange(0, 20) ? 0 : in.ConsumeIntegral<int16_t>(); }

void tensors(FuzzedDataProvider& in) {
  const int32_t type = in.PickValueInArray({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30, 39, 5, -1});
  const TypeInfo info = type_info(type);
  const int per = std::max(1, info.values);
  const int outputs = in.ConsumeIntegralInRange(0, 130), inputs = in.ConsumeIntegralInRange(0, 3) * per + slip(in);
  if (inputs < 0 || inputs > 4096) return;
  const int target = in.ConsumeIntegralInRange(-1, 5), first = in.ConsumeIntegralInRange(-1, 130);
  const int total = in.ConsumeBool() ? in.ConsumeIntegralInRange(-1, 4) * BLOCK : in.ConsumeIntegralInRange(-1, 300);
  const size_t row = size_t(inputs) / per * info.bytes, bytes = size_t(outputs) * row - size_t(in.ConsumeIntegralInRange(0, 20) == 7);
  std::vector<int32_t> order(in.ConsumeBool() ? outputs : 0);
  for (int32_t& o : order) o = in.ConsumeIntegralInRange(-1, outputs);
  std::vector<int64_t> rows(in.ConsumeIntegralInRange(0, 3));
  for (int64_t& r : rows) r = in.ConsumeIntegralInRange(-1, outputs);
  if (bytes > 1 << 24) return;
  Memory<uint8_t> blocks(bytes);
  const std::vector<uint8_t> content = in.ConsumeRemainingBytes<uint8_t>();
  for (size_t i = 0; i < bytes && !content.empty(); ++i) blocks.at[i] = content[i % content.size()];
  Memory<float> values(rows.size() * size_t(inputs));
  solm_dequantise(type, blocks.at, bytes, outputs, inputs, rows.data(), int64_t(rows.size()), values.at, message);
  const int bits = target == NESTED ? 8 : info.bits, group = target == NESTED ? GROUP : std::max(1, info.group);
  const int kinds = target == NESTED || info.centre < 0 ? 2 : 1, whole = std::max(0, (total + BLOCK - 1) / BLOCK * BLOCK);
  const bool packed = target == NESTED || target == OWN;
  const size_t all = size_t(std::max(0, total)) * inputs;
  const size_t data = packed && bits ? PackedRows(nullptr, std::max(0, total), bits).bytes * inputs
                      : target == INT8 ? size_t(whole) * inputs : all * (target == BFLOAT16 ? 2 : 4);
  Memory<uint8_t> made(data);
  Memory<float> scale(target == INT8 ? std::max(0, total) : 0);
  Memory<uint16_t> grid(packed ? size_t(inputs) / group * kinds * std::max(0, total) : 0);
  solm_repack(type, blocks.at, bytes, outputs, inputs, order.empty() ? nullptr : order.data(), target, first, total, made.at,
              scale.at, packed ? grid.at : nullptr, in.ConsumeIntegralInRange(0, 2), message);
}

// Two layers over floats, made once.
struct Tiny {
  static constexpr int H = 32, I = 48, HEADS = 2, D = 16, V = 40, LAYERS = 2;
  std::vector<std::unique_ptr<Memory<float>>> kept;
  Layer layers[LAYERS] = {};
  Mlp mlps[LAYERS] = {};
  Rope rope = {};
  void* engine = nullptr;

  float* floats(size_t count) {
    kept.push_back(std::make_unique<Memory<float>>(count));
    for (size_t i = 0; i < count; ++i) kept.back()->at[i] = float(int((i * 2654435761u) >> 24 & 255) - 128) / 400;
    return kept.back()->at;
  }

  Product product(int in, int out) {
    Product p{};
    p.part[0].data = floats(size_t(in) * out), p.part[0].outputs = out, p.parts = 1;
    return p;
  }

  Tiny() {
    Model model{};
    Sizes& s = model.sizes;
    s.layers = LAYERS, s.hidden = H, s.intermediate = I, s.heads = HEADS, s.kv_heads = 1, s.head_dim = D, s.vocabulary = V;
    s.positions = 300, s.threads = 2, s.gated = 1, s.epsilon = 1e-5f;
    s.embedding_scale = s.residual_scale = s.logit_scale = 1, s.softmax_scale = 0.25f;
    rope = {floats(D / 2), D, 1};
    for (int l = 0; l < LAYERS; ++l) {
      Layer& layer = layers[l];
      layer.qkv = product(H, (HEADS + 2) * D), layer.out = product(HEADS * D, H), layer.mlps = &mlps[l];
      mlps[l].gate_up = product(H, 2 * I), mlps[l].down = product(I, H);
      layer.window = l ? 40 : 0, layer.attention_norm.weight = floats(H), layer.mlp_norm.weight = floats(H);
    }
    model.layers = layers, model.embedding = floats(V * H), model.head.data = floats(V * H), model.final_norm.weight = floats(H);
    model.ropes = &rope, model.rope_count = 1;
    if (solm_engine(&model, &engine, message)) std::fprintf(stderr, "%s\n", message), std::abort();
  }
};

void calls(FuzzedDataProvider& in) {
  static Tiny tiny;
  std::vector<void*> caches;
  while (in.remaining_bytes() > 8) {
    if (caches.empty() || in.ConsumeIntegralInRange(0, 3) == 0) {
      void *made = nullptr, *source = caches.empty() || in.ConsumeBool() ? nullptr : caches[in.ConsumeIntegralInRange<size_t>(0, caches.size() - 1)];
      const int64_t length = source ? in.ConsumeIntegralInRange(-1, 100) : 0, capacity = in.ConsumeIntegralInRange(0, 8) * PAGE;
      if (!solm_cache(tiny.engine, source, length, capacity + slip(in), &made, message)) caches.push_back(made);
      continue;
    }
    Call c{};
    SparsityRules rules{};
    rules.sinks = in.ConsumeIntegralInRange(-1, 40), rules.window = in.ConsumeIntegralInRange(PAGE - 1, 60);
    rules.input_site = in.ConsumeBool(), rules.hidden_site = in.ConsumeBool(), rules.hidden_power = in.ConsumeIntegralInRange(0, 2);
    rules.group = in.ConsumeIntegralInRange(-1, 2) * GROUP, rules.heads = 1, rules.input_part = 0.5, rules.experts = slip(in) != 0;
    c.rows = in.ConsumeIntegralInRange(0, 4), c.count = in.ConsumeIntegralInRange(0, 40);
    c.first = in.ConsumeIntegralInRange(-1, 2), c.last = in.ConsumeIntegralInRange(-1, 3);
    c.exact_largest = in.ConsumeIntegralInRange(-1, MOST_EXACT + 1), c.logit_steps = in.ConsumeIntegralInRange(-1, c.count + 1);
    c.outputs = in.ConsumeBool() ? Tiny::V : in.ConsumeIntegralInRange(-1, Tiny::V + 1);
    c.adaptive_head = in.ConsumeBool(), c.blocks = in.ConsumeBool(), c.message = message, c.rules = &rules;
    const size_t steps = size_t(c.rows) * c.count;
    Memory<void*> held(c.rows);
    Memory<int32_t> counts(c.rows);
    Memory<int64_t> tokens(steps), lengths(c.rows), actions(steps);
    Memory<double> keep(3 * steps), realised(3 * steps);
    Memory<RowState> states(c.rows);
    Memory<float> stream(steps * Tiny::H), logits(size_t(c.rows) * std::max(0, c.logit_steps) * std::max(0, c.outputs));
    for (int r = 0; r < c.rows; ++r) {
      held.at[r] = caches[in.ConsumeIntegralInRange<size_t>(0, caches.size() - 1)];
      counts.at[r] = in.ConsumeIntegralInRange(0, c.count + 1), lengths.at[r] = in.ConsumeIntegralInRange(-1, 130);
    }
    const double shares[] = {1, 0.5, 0.25, 0, 0.7, -0.1, 1.5, NAN}, bits[] = {16, 8, 2, 4.5, 5, 1, 17, NAN};
    for (size_t i = 0; i < steps; ++i) {
      tokens.at[i] = in.ConsumeIntegralInRange(0, 200) ? int64_t(i % Tiny::V) : in.ConsumeIntegral<int64_t>();
      const int odd = in.ConsumeIntegralInRange(0, 40) ? 4 : 7;
      for (int axis = 0; axis < 3; ++axis) keep.at[3 * i + axis] = (axis < 2 ? shares : bits)[in.ConsumeIntegralInRange(0, odd)];
    }
    c.caches = held.at, c.counts = in.ConsumeBool() ? counts.at : nullptr, c.tokens = tokens.at, c.lengths = lengths.at;
    c.keep = in.ConsumeBool() ? keep.at : nullptr, c.states = states.at, c.actions = actions.at, c.realised = realised.at;
    c.stream = in.ConsumeBool() ? stream.at : nullptr, c.logits = in.ConsumeBool() ? logits.at : nullptr;
    solm_run(tiny.engine, &c);
  }
  for (void* cache : caches) solm_cache_free(cache);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider in(data, size);
  in.ConsumeBool() ? tensors(in) : calls(in);
  return 0;
}
