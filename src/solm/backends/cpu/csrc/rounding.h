// How a group of a matrix's inputs becomes int8 numbers with a scale.
#pragma once

#include <algorithm>

namespace solm {

// value = step * number, number = value * inverse. Steps and chunks of many tokens round alike to the last bit: a division by
// `most` might become a product where compilers find that faster.
struct Rounding {
  float step, inverse;

  // peak: the largest |value|; most: the number that it becomes.
  Rounding(float peak, float most) {
    const float part = 1 / most;
    step = peak * part, inverse = most / std::max(peak, 1.17549435e-36f);
  }
};

}  // namespace solm
