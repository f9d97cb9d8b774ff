// Pooling leaves, written once over simd/: see PoolUkernel in ukernel.h.
//
// A window is folded in two passes. The first folds its rows: for one output row and a strip of output columns, every
// input column becomes one value, walked as one run of adjacent floats (columns times channels), whatever the layout.
// The result lies in private memory with the padding written out, so that the second pass, along the columns, knows no
// borders: in NCHW (c = 1) its vectors span output columns, in NHWC they span channels.
// Windows of at most three rows and columns need no such memory: pixels of whole vectors are folded as they are read, and so
// are planes in windows of two columns with stride 2, whose even and odd columns are parted in registers. (A vector that is loaded from across two that have
// just been stored waits until both have left for the cache.)
#pragma once

#include <math.h>

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;
constexpr int64_t kBlock = 32;                  // terms of a sum before it is added to the total
constexpr int64_t kMaxStep = int64_t{1} << 26;  // of simd::load_step

struct Max {
  static constexpr float kIdentity = -INFINITY;
  static F step(F m, F x) { return simd::max_nan(m, x); }
};
struct Sum {
  static constexpr float kIdentity = 0.0f;
  static F step(F m, F x) { return simd::add(m, x); }
};

struct Span {
  int64_t begin, end;
};
// The taps t of 0..count-1 for which start + t * step lies in 0..size-1.
inline Span taps_inside(int64_t start, int64_t step, int64_t count, int64_t size) {
  const int64_t begin = start < 0 ? smaller((-start + step - 1) / step, count) : 0;
  const int64_t end = start < size ? smaller((size - 1 - start) / step + 1, count) : 0;
  return {begin, larger(begin, end)};
}

// load(0), load(1), .. in order; kCount is their number where it is known, or 0. Long sums go in blocks, for accuracy.
template <class R, int kCount, class Load>
inline F fold(int64_t count, Load load) {
  if constexpr (kCount > 0) {
    F m = load(0);
#pragma GCC unroll 4
    for (int t = 1; t < kCount; ++t) m = R::step(m, load(t));
    return m;
  } else {
    F total = simd::set1(R::kIdentity);
    for (int64_t t = 0; t < count;) {
      const int64_t end = smaller(count, t + kBlock);
      F m = load(t);
      for (++t; t < end; ++t) m = R::step(m, load(t));
      total = R::step(total, m);
    }
    return total;
  }
}

inline void fill(float* out, int64_t n, float value) {
  const F v = simd::set1(value);
  int64_t j = 0;
  for (; j + kL <= n; j += kL) simd::store(out + j, v);
  if (j < n) simd::store(out + j, v, simd::first(n - j));
}

// --- first pass: rows -------------------------------------------------------------------------------------------------

template <class R, int kRows>
void fold_rows_of(const float* src, int64_t ld, int64_t rows, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + kL <= n; j += kL)
    simd::store(out + j, fold<R, kRows>(rows, [&](int64_t r) { return simd::load(src + r * ld + j); }));
  if (j < n) {
    const Mask m = simd::first(n - j);
    simd::store(out + j, fold<R, kRows>(rows, [&](int64_t r) { return simd::load(src + r * ld + j, m); }), m);
  }
}

// out[j] = fold over rows of src[r * ld + j], j < n; rows >= 1.
template <class R>
void fold_rows(const float* src, int64_t ld, int64_t rows, int64_t n, float* out) {
  if (rows == 3) return fold_rows_of<R, 3>(src, ld, rows, n, out);
  if (rows == 2) return fold_rows_of<R, 2>(src, ld, rows, n, out);
  if (rows == 5) return fold_rows_of<R, 5>(src, ld, rows, n, out);
  fold_rows_of<R, 0>(src, ld, rows, n, out);
}

// Where a strip of output columns x0..x1-1 reads: image columns left .. left + width - 1, of which lo..hi-1 exist.
struct Strip {
  int64_t left, width, lo, hi;
};
inline Strip strip_of(const PoolCall& g, int64_t x0, int64_t x1) {
  Strip s;
  s.left = x0 * g.sw - g.pl;
  s.width = (x1 - x0 - 1) * g.sw + (g.kw - 1) * g.dw + 1;
  s.lo = smaller(larger(s.left, 0), g.iw);
  s.hi = larger(smaller(s.left + s.width, g.iw), s.lo);
  return s;
}

// work[(column - left) * c + channel] for the strip; the identity where there is no image.
template <class R>
void rows_of_strip(const PoolCall& g, int64_t y, const Strip& s) {
  const int64_t h0 = y * g.sh - g.pt, used = s.width * g.c;
  const Span rows = taps_inside(h0, g.dh, g.kh, g.ih);
  if (rows.begin == rows.end || s.lo == s.hi) {
    fill(g.work, used, R::kIdentity);
  } else {
    const int64_t before = (s.lo - s.left) * g.c, n = (s.hi - s.lo) * g.c, line = g.iw * g.c;
    fill(g.work, before, R::kIdentity);
    fold_rows<R>(g.src + (h0 + rows.begin * g.dh) * line + s.lo * g.c, g.dh * line, rows.end - rows.begin, n,
                 g.work + before);
    fill(g.work + before + n, used - before - n, R::kIdentity);
  }
  if (g.c == 1) fill(g.work + used, 2 * kL, R::kIdentity);  // load_even reads on
}

// --- second pass: columns ---------------------------------------------------------------------------------------------

// How kL neighbours of one output row lie in the work memory: `step` floats apart.
struct Adjacent {
  int64_t step = 1;
  F operator()(const float* p) const { return simd::load(p); }
  F operator()(const float* p, Mask m) const { return simd::load(p, m); }
};
struct Even {
  int64_t step = 2;
  F operator()(const float* p) const { return simd::load_even(p); }
  F operator()(const float* p, Mask) const { return simd::load_even(p); }
};
struct Spread {
  int64_t step;
  F operator()(const float* p) const { return simd::load_step(p, step, simd::first(kL)); }
  F operator()(const float* p, Mask m) const { return simd::load_step(p, step, m); }
};

template <class R, int kTaps, class Loader>
void fold_taps_of(const float* v, int64_t tap, int64_t taps, int64_t n, Loader load, float* out) {
  int64_t j = 0;
  for (; j + kL <= n; j += kL)
    simd::store(out + j, fold<R, kTaps>(taps, [&](int64_t t) { return load(v + j * load.step + t * tap); }));
  if (j < n) {
    const Mask m = simd::first(n - j);
    simd::store(out + j, fold<R, kTaps>(taps, [&](int64_t t) { return load(v + j * load.step + t * tap, m); }), m);
  }
}

// out[j] = fold over t < taps of v[j * step + t * tap], j < n.
template <class R, class Loader>
void fold_taps(const float* v, int64_t tap, int64_t taps, int64_t n, Loader load, float* out) {
  if (taps == 3) return fold_taps_of<R, 3>(v, tap, taps, n, load, out);
  if (taps == 2) return fold_taps_of<R, 2>(v, tap, taps, n, load, out);
  if (taps == 5) return fold_taps_of<R, 5>(v, tap, taps, n, load, out);
  fold_taps_of<R, 0>(v, tap, taps, n, load, out);
}

inline float across(Sum, F v) {
  return simd::sum(v);
}
inline float across(Max, F v) {
  float lane[kL];
  simd::store(lane, v);
  float m = lane[0];
  for (int i = 1; i < kL; ++i)
    if (lane[i] > m || lane[i] != lane[i]) m = m != m ? m : lane[i];
  return m;
}

// One value from n adjacent ones.
template <class R>
float fold_run(const float* v, int64_t n) {
  const int64_t whole = n / kL;
  F m = fold<R, 0>(whole, [&](int64_t t) { return simd::load(v + t * kL); });
  if (whole * kL < n) {
    const Mask rest = simd::first(n - whole * kL);
    m = R::step(m, simd::select(rest, simd::load(v + whole * kL, rest), simd::set1(R::kIdentity)));
  }
  return across(R{}, m);
}

// Few outputs with wide windows: vectors along the window instead of along the outputs. Follows from the problem alone.
inline bool runs_pay(const PoolCall& g) {
  if (g.c != 1 || g.dw != 1) return false;
  const int64_t vectors = (g.ow + kL - 1) / kL;
  return g.ow * (g.kw / kL + 10) < g.kw * vectors * (g.sw > 2 ? 8 : g.sw);
}

template <class R>
void columns_of_strip(const PoolCall& g, bool runs, int64_t count, float* out) {
  const int64_t c = g.c, tap = g.dw * c;
  if (runs) {
    for (int64_t x = 0; x < count; ++x) out[x] = fold_run<R>(g.work + x * g.sw, g.kw);
  } else if (g.sw == 1 || count == 1) {
    fold_taps<R>(g.work, tap, g.kw, count * c, Adjacent{}, out);
  } else if (c == 1 && g.sw == 2) {
    fold_taps<R>(g.work, tap, g.kw, count, Even{}, out);
  } else if (c == 1 && g.sw <= kMaxStep) {
    fold_taps<R>(g.work, tap, g.kw, count, Spread{g.sw}, out);
  } else {
    for (int64_t x = 0; x < count; ++x) fold_taps<R>(g.work + x * g.sw * c, tap, g.kw, c, Adjacent{}, out + x * c);
  }
}

// --- small windows, folded as they are read ------------------------------------------------------------------------------

// `count` pixels of kV vectors, in windows of three columns one or two pixels apart: columns that the next window has too are kept.
template <class R, int kRows, int kV>
void slide(const float* src, int64_t ld, bool one, int64_t count, int64_t c, float* out) {
  const auto column = [&](const float* at, F v[kV]) {
#pragma GCC unroll 4
    for (int k = 0; k < kV; ++k)
      v[k] = fold<R, kRows>(kRows, [&](int64_t r) { return simd::load(at + r * ld + k * kL); });
  };
  F first[kV], second[kV], third[kV];
  column(src, first);
#pragma GCC unroll 4
  for (int k = 0; k < kV; ++k) second[k] = simd::zero();
  if (one) column(src + c, second);
  src += one ? 2 * c : c;
  for (int64_t x = 0; x < count; ++x, out += c) {
    if (!one) column(src, second), src += c;
    column(src, third), src += c;
#pragma GCC unroll 4
    for (int k = 0; k < kV; ++k) {
      simd::store(out + k * kL, R::step(R::step(first[k], second[k]), third[k]));
      first[k] = one ? second[k] : third[k];
      second[k] = third[k];
    }
  }
}

// `count` pixels, whose windows lie `step` floats apart.
template <class R, int kRows, int kCols>
void fold_pixels_of(const float* src, int64_t ld, int64_t tap, int64_t step, int64_t count, int64_t c, float* out) {
  const int64_t whole = c / kL * kL;
  const Mask rest = simd::first(c - whole);
  int64_t done = 0;  // channels
  if (kCols == 3 && tap == c && (step == c || step == 2 * c)) {
    for (; done + 4 * kL <= c; done += 4 * kL) slide<R, kRows, 4>(src + done, ld, step == c, count, c, out + done);
    for (; done + kL <= c; done += kL) slide<R, kRows, 1>(src + done, ld, step == c, count, c, out + done);
    if (done == c) return;
  }
  for (int64_t x = 0; x < count; ++x, src += step, out += c) {
    for (int64_t j = done; j < whole; j += kL)
      simd::store(out + j, fold<R, kCols>(kCols, [&](int64_t t) {
                    const float* at = src + t * tap + j;
                    return fold<R, kRows>(kRows, [&](int64_t r) { return simd::load(at + r * ld); });
                  }));
    if (whole < c) {
      const F v = fold<R, kCols>(kCols, [&](int64_t t) {
        const float* at = src + t * tap + whole;
        return fold<R, kRows>(kRows, [&](int64_t r) { return simd::load(at + r * ld, rest); });
      });
      simd::store(out + whole, v, rest);
    }
  }
}

template <class R, int kRows>
void fold_pixels_in(int64_t cols, const float* src, int64_t ld, int64_t tap, int64_t step, int64_t count, int64_t c,
                    float* out) {
  if (cols == 3) return fold_pixels_of<R, kRows, 3>(src, ld, tap, step, count, c, out);
  if (cols == 2) return fold_pixels_of<R, kRows, 2>(src, ld, tap, step, count, c, out);
  fold_pixels_of<R, kRows, 1>(src, ld, tap, step, count, c, out);
}
template <class R>
void fold_pixels(int64_t rows, int64_t cols, const float* src, int64_t ld, int64_t tap, int64_t step, int64_t count,
                 int64_t c, float* out) {
  if (rows == 3) return fold_pixels_in<R, 3>(cols, src, ld, tap, step, count, c, out);
  if (rows == 2) return fold_pixels_in<R, 2>(cols, src, ld, tap, step, count, c, out);
  fold_pixels_in<R, 1>(cols, src, ld, tap, step, count, c, out);
}

// out[j] of a plane: two columns from src[2 * j] on, j < count.
template <class R, int kRows>
void fold_pairs_of(const float* src, int64_t ld, int64_t count, float* out) {
  int64_t j = 0;
  for (; j + kL <= count; j += kL) {
    const auto columns = [&](int64_t from) {
      return fold<R, kRows>(kRows, [&](int64_t r) { return simd::load(src + r * ld + 2 * j + from); });
    };
    const F a = columns(0), b = columns(kL);
    simd::store(out + j, R::step(simd::even(a, b), simd::odd(a, b)));
  }
  if (j < count) {
    const int64_t n = 2 * (count - j);  // columns that are left
    const auto columns = [&](int64_t from) {
      const Mask m = simd::first(n - from);
      return fold<R, kRows>(kRows, [&](int64_t r) { return simd::load(src + r * ld + 2 * j + from, m); });
    };
    const F a = columns(0), b = n > kL ? columns(kL) : a;
    simd::store(out + j, R::step(simd::even(a, b), simd::odd(a, b)), simd::first(count - j));
  }
}
template <class R>
void fold_pairs(int64_t rows, const float* src, int64_t ld, int64_t count, float* out) {
  if (rows == 3) return fold_pairs_of<R, 3>(src, ld, count, out);
  if (rows == 2) return fold_pairs_of<R, 2>(src, ld, count, out);
  fold_pairs_of<R, 1>(src, ld, count, out);
}

inline bool as_read(const PoolCall& g) {
  if (g.kh > 3 || g.kw > 3) return false;
  return g.c >= kL || (g.c == 1 && g.kw == 2 && g.sw == 2 && g.dw == 1);
}

// One output row. Taps outside the image are left out.
template <class R>
void row_as_read(const PoolCall& g, int64_t y, float* out) {
  const int64_t h0 = y * g.sh - g.pt, c = g.c, line = g.iw * c, tap = g.dw * c;
  const Span rows = taps_inside(h0, g.dh, g.kh, g.ih);
  if (rows.begin == rows.end) return fill(out, g.ow * c, R::kIdentity);
  const float* src = g.src + (h0 + rows.begin * g.dh) * line;
  const int64_t count = rows.end - rows.begin, ld = g.dh * line, room = g.iw - 1 - (g.kw - 1) * g.dw + g.pl;
  const int64_t inner_begin = smaller((g.pl + g.sw - 1) / g.sw, g.ow);
  const int64_t inner_end = larger(inner_begin, room < 0 ? 0 : smaller(room / g.sw + 1, g.ow));
  for (int64_t x = 0; x < g.ow;) {
    const int64_t left = x * g.sw - g.pl;
    if (x == inner_begin && inner_begin < inner_end) {
      const int64_t pixels = inner_end - inner_begin;
      if (c == 1) {
        fold_pairs<R>(count, src + left, ld, pixels, out + x);
      } else {
        fold_pixels<R>(count, g.kw, src + left * c, ld, tap, g.sw * c, pixels, c, out + x * c);
      }
      x = inner_end;
      continue;
    }
    const Span cols = taps_inside(left, g.dw, g.kw, g.iw);
    if (cols.begin == cols.end) {
      fill(out + x * c, c, R::kIdentity);
    } else {
      fold_pixels<R>(count, cols.end - cols.begin, src + (left + cols.begin * g.dw) * c, ld, tap, 0, 1, c, out + x * c);
    }
    ++x;
  }
}

void max_pool(const PoolCall* call) {
  const PoolCall& g = *call;
  if (as_read(g)) {
    for (int64_t y = g.row_begin; y < g.row_end; ++y) row_as_read<Max>(g, y, g.dst + y * g.ow * g.c);
    return;
  }
  const bool runs = runs_pay(g);
  for (int64_t y = g.row_begin; y < g.row_end; ++y)
    for (int64_t x0 = 0; x0 < g.ow; x0 += g.strip) {
      const int64_t x1 = smaller(g.ow, x0 + g.strip);
      rows_of_strip<Max>(g, y, strip_of(g, x0, x1));
      columns_of_strip<Max>(g, runs, x1 - x0, g.dst + (y * g.ow + x0) * g.c);
    }
}

// --- average ----------------------------------------------------------------------------------------------------------

// Every sum is divided, not multiplied by a rounded inverse; the inverse of a power of two is exact.
inline void divide(float* v, int64_t n, int64_t count) {
  const float divisor = static_cast<float>(count);
  const int64_t size = count < 0 ? -count : count;
  const bool exact = size < (int64_t{1} << 24) && (size & (size - 1)) == 0;
  const F d = simd::set1(exact ? 1.0f / divisor : divisor);
  int64_t j = 0;
  for (; j + kL <= n; j += kL) {
    const F x = simd::load(v + j);
    simd::store(v + j, exact ? simd::mul(x, d) : simd::div(x, d));
  }
  if (j < n) {
    const Mask m = simd::first(n - j);
    const F x = simd::load(v + j, m);
    simd::store(v + j, exact ? simd::mul(x, d) : simd::div(x, d), m);
  }
}

// Elements that a window starting at `start` counts along one axis.
inline int64_t counted(int64_t start, int64_t kernel, int64_t size, int64_t pad_end, bool include_pad) {
  if (include_pad) return smaller(start + kernel, size + pad_end) - start;
  return larger(smaller(start + kernel, size) - larger(start, 0), 0);
}

void average_pool(const PoolCall* call) {
  const PoolCall& g = *call;
  const bool read = as_read(g), runs = runs_pay(g), pad = g.count_include_pad != 0;
  // Columns full_begin..full_end-1 count whole windows.
  const int64_t room = g.iw + (pad ? g.pr : 0) + g.pl - g.kw;
  const int64_t full_begin = pad ? 0 : smaller((g.pl + g.sw - 1) / g.sw, g.ow);
  const int64_t full_end = larger(full_begin, room < 0 ? 0 : smaller(room / g.sw + 1, g.ow));
  for (int64_t y = g.row_begin; y < g.row_end; ++y) {
    const int64_t high = counted(y * g.sh - g.pt, g.kh, g.ih, g.pb, pad), strip = read ? g.ow : g.strip;
    for (int64_t x0 = 0; x0 < g.ow; x0 += strip) {
      const int64_t x1 = smaller(g.ow, x0 + strip);
      float* out = g.dst + (y * g.ow + x0) * g.c;
      if (read) {
        row_as_read<Sum>(g, y, out);
      } else {
        rows_of_strip<Sum>(g, y, strip_of(g, x0, x1));
        columns_of_strip<Sum>(g, runs, x1 - x0, out);
      }
      if (g.divisor != 0) {
        divide(out, (x1 - x0) * g.c, g.divisor);
        continue;
      }
      for (int64_t x = x0; x < x1;) {
        const bool full = x >= full_begin && x < full_end;
        const int64_t next = full ? smaller(x1, full_end) : x + 1;
        const int64_t wide = full ? g.kw : counted(x * g.sw - g.pl, g.kw, g.iw, g.pr, pad);
        // A window without any element has the sum 0, which stays.
        divide(out + (x - x0) * g.c, (next - x) * g.c, larger(high * wide, 1));
        x = next;
      }
    }
  }
}

inline Span adaptive_window(int64_t i, int64_t in, int64_t out) {
  return {i * in / out, ((i + 1) * in + out - 1) / out};
}

void adaptive_average_pool(const PoolCall* call) {
  const PoolCall& g = *call;
  const int64_t c = g.c, line = g.iw * c;
  for (int64_t y = g.row_begin; y < g.row_end; ++y) {
    const Span h = adaptive_window(y, g.ih, g.oh);
    for (int64_t x0 = 0; x0 < g.ow; x0 += g.strip) {
      const int64_t x1 = smaller(g.ow, x0 + g.strip);
      const int64_t left = adaptive_window(x0, g.iw, g.ow).begin, right = adaptive_window(x1 - 1, g.iw, g.ow).end;
      fold_rows<Sum>(g.src + h.begin * line + left * c, line, h.end - h.begin, (right - left) * c, g.work);
      for (int64_t x = x0; x < x1; ++x) {
        const Span w = adaptive_window(x, g.iw, g.ow);
        const float* v = g.work + (w.begin - left) * c;
        float* out = g.dst + (y * g.ow + x) * c;
        if (c == 1) {
          out[0] = fold_run<Sum>(v, w.end - w.begin);
        } else {
          fold_taps<Sum>(v, c, w.end - w.begin, c, Adjacent{}, out);
        }
        divide(out, c, (h.end - h.begin) * (w.end - w.begin));
      }
    }
  }
}

}  // namespace
}  // namespace fastconv
