// Loops that are written out before anything else is optimised. Compilers keep the elements of a small array in registers
// only where their indices are constants by then.
#pragma once

#include <type_traits>
#include <utility>

#define SOLM_INLINE __attribute__((always_inline))

namespace solm {

// Calls use(i) for i below N, each a compile-time constant.
template <int N, typename Use>
SOLM_INLINE inline void each(Use use) {
  [&]<int... I>(std::integer_sequence<int, I...>) SOLM_INLINE {
    (use(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, N>());
}

constexpr auto FIRST_STRIP = std::integral_constant<int, 0>();  // what a TileDot of one strip gives

}  // namespace solm
