// Max pooling that also says which element it chose, written once over simd/: see PoolUkernel in ukernel.h.
//
// The two passes of pool_body.h, each with a second value: the number of the window's row that holds the maximum of a
// column, kept as a float in a vector lane (exact up to 2^24). Among equal columns the one with the smaller row wins,
// then the one further left, which is the first in row-major order. NaN counts as greater than everything and equal to
// itself.
#pragma once

#include "cpu/pool/pool_body.h"

namespace fastconv {
namespace {

// values[j], rows[j] of n columns; the first of `count` rows has number `first`.
inline void best_rows(const float* src, int64_t ld, int64_t first, int64_t count, int64_t n, float* values,
                      float* rows) {
  for (int64_t j = 0; j < n; j += kL) {
    const Mask lanes = simd::first(n - j);
    F best = simd::load(src + j, lanes), row = simd::set1(static_cast<float>(first));
    for (int64_t r = 1; r < count; ++r) {
      const F x = simd::load(src + r * ld + j, lanes);
      const Mask better = simd::above(x, best);
      best = simd::select(better, x, best);
      row = simd::select(better, simd::set1(static_cast<float>(first + r)), row);
    }
    simd::store(values + j, best, lanes);
    simd::store(rows + j, row, lanes);
  }
}

// n outputs whose taps lie at j * step + t * tap in values and rows. Output j begins at element origin + j *
// origin_step of the plane (possibly outside), and a tap (row, column) of its window lies row * line + column * pitch
// further.
template <class Loader>
void best_taps(const float* values, const float* rows, int64_t tap, int64_t taps, int64_t n, Loader load,
               int64_t origin, int64_t origin_step, int64_t line, int64_t pitch, float* out, int64_t* indices) {
  for (int64_t j = 0; j < n; j += kL) {
    const Mask lanes = simd::first(n - j);
    F best = simd::set1(-INFINITY), row = simd::set1(INFINITY), column = simd::zero();
    for (int64_t t = 0; t < taps; ++t) {
      const F x = load(values + j * load.step + t * tap, lanes), r = load(rows + j * load.step + t * tap, lanes);
      const Mask better =
          simd::either(simd::above(x, best), simd::without(simd::greater(row, r), simd::above(best, x)));
      best = simd::select(better, x, best);
      row = simd::select(better, r, row);
      column = simd::select(better, simd::set1(static_cast<float>(t)), column);
    }
    simd::store(out + j, best, lanes);
    float at_row[kL], at_column[kL];
    simd::store(at_row, row);
    simd::store(at_column, column);
    const int64_t count = smaller(kL, n - j);
    for (int64_t i = 0; i < count; ++i) {
      const bool none = at_row[i] == INFINITY;  // the window lies in the padding alone
      const int64_t r = none ? 0 : static_cast<int64_t>(at_row[i]), s = static_cast<int64_t>(at_column[i]);
      indices[j + i] = none ? -1 : origin + (j + i) * origin_step + r * line + s * pitch;
    }
  }
}

void best_of_image(const PoolCall& g) {
  const int64_t c = g.c, tap = g.dw * c, line = g.iw * c, down = g.dh * g.iw;
  float* values = g.work;
  float* rows = g.work + g.work_floats / 2;
  for (int64_t y = g.row_begin; y < g.row_end; ++y) {
    const int64_t h0 = y * g.sh - g.pt;
    const Span inside = taps_inside(h0, g.dh, g.kh, g.ih);
    for (int64_t x0 = 0; x0 < g.ow; x0 += g.strip) {
      const int64_t x1 = smaller(g.ow, x0 + g.strip), count = x1 - x0;
      const Strip s = strip_of(g, x0, x1);
      const bool empty = inside.begin == inside.end || s.lo == s.hi;
      const int64_t before = empty ? s.width * c : (s.lo - s.left) * c, n = empty ? 0 : (s.hi - s.lo) * c;
      const int64_t after = s.width * c - before - n + (c == 1 ? 2 * kL : 0);  // load_even reads on
      fill(values, before, -INFINITY);
      fill(rows, before, INFINITY);
      if (!empty)
        best_rows(g.src + (h0 + inside.begin * g.dh) * line + s.lo * c, g.dh * line, inside.begin,
                  inside.end - inside.begin, n, values + before, rows + before);
      fill(values + before + n, after, -INFINITY);
      fill(rows + before + n, after, INFINITY);

      const int64_t origin = h0 * g.iw + s.left, at = (y * g.ow + x0) * c;
      float* out = g.dst + at;
      int64_t* indices = g.indices + at;
      if (c == 1 && g.sw == 1) {
        best_taps(values, rows, tap, g.kw, count, Adjacent{}, origin, 1, down, g.dw, out, indices);
      } else if (c == 1 && g.sw == 2) {
        best_taps(values, rows, tap, g.kw, count, Even{}, origin, 2, down, g.dw, out, indices);
      } else if (c == 1 && g.sw <= kMaxStep) {
        best_taps(values, rows, tap, g.kw, count, Spread{g.sw}, origin, g.sw, down, g.dw, out, indices);
      } else {
        for (int64_t x = 0; x < count; ++x)
          best_taps(values + x * g.sw * c, rows + x * g.sw * c, tap, g.kw, c, Adjacent{}, origin + x * g.sw, 0, down,
                    g.dw, out + x * c, indices + x * c);
      }
    }
  }
}
void max_pool_indices(const PoolCall* call) {
  each_image(call, best_of_image);
}

}  // namespace
}  // namespace fastconv
