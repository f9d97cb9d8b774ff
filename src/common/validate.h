// Turns what a caller said into a Problem, or throws: std::invalid_argument (ValueError) naming the argument and both numbers,
// std::length_error (MemoryError) for sizes beyond any memory. Types and dtypes were judged before (Python, bindings).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "common/problem.h"

namespace fastconv {

using Shape = std::vector<int64_t>;
using Pair = std::array<int64_t, 2>;  // (h, w)
using Pads = std::array<int64_t, 4>;  // (top, bottom, left, right)

// Shapes are four-dimensional here, in the order of `layout`. bias_size: -1 for none.
Problem conv2d_problem(const Shape& input, const Shape& weight, int64_t bias_size, bool residual, Pair stride,
                       Pads padding, Pair dilation, int64_t groups, Layout layout, WeightLayout weight_layout,
                       Activation activation);
Problem max_pool2d_problem(const Shape& input, Pair kernel, Pair stride, Pads padding, Pair dilation, bool ceil_mode,
                           Layout layout);
Problem avg_pool2d_problem(const Shape& input, Pair kernel, Pair stride, Pads padding, bool ceil_mode,
                           bool count_include_pad, int64_t divisor_override, Layout layout);
Problem adaptive_avg_pool2d_problem(const Shape& input, Pair output_size, Layout layout);
Problem relu_problem(const Shape& input);
Problem softmax_problem(const Shape& input, int64_t dim);
Problem batch_norm_problem(const Shape& input, int64_t scale_size, int64_t shift_size, Layout layout);
Problem convert_layout_problem(const Shape& input, Layout source, Layout target);

Shape output_shape(const Problem&);  // in the problem's layout (convert_layout: the target's)
std::string to_string(const Shape&);
// Product of the extents, at most 2^50; ValueError for a negative one.
int64_t checked_elements(const Shape&);

}  // namespace fastconv
