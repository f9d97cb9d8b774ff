// Pooling leaves, written once over simd/: see PoolUkernel in ukernel.h.
//
// A window is folded in two passes. The first folds its rows: for one output row and a strip of output columns, every
// input column becomes one value, walked as one run of adjacent floats (columns times channels), whatever the layout.
// The result lies in private memory with the padding written out, so that the second pass, along the columns, knows no
// borders: in NCHW (c = 1) its vectors span output columns, in NHWC they span channels.
// Small windows need no such memory: pixels of whole vectors (pixels_body.h) and planes (planes_body.h) are folded as they are read. (A vector that is loaded
// from across two that have just been stored waits until both have left for the cache.)
#pragma once

#include "cpu/pool/pixels_body.h"
#include "cpu/pool/planes_body.h"

namespace fastconv {
namespace {

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

template <class R>
void pool_strips(const PoolCall& g) {
  const bool runs = runs_pay(g);
  for (int64_t y = g.row_begin; y < g.row_end; ++y)
    for (int64_t x0 = 0; x0 < g.ow; x0 += g.strip) {
      const int64_t x1 = smaller(g.ow, x0 + g.strip);
      float* out = g.dst + (y * g.ow + x0) * g.c;
      rows_of_strip<R>(g, y, strip_of(g, x0, x1));
      columns_of_strip<R>(g, runs, x1 - x0, out);
      if (R::kSums) divide_row(g, y, x0, x1, out);
    }
}

void max_pool(const PoolCall* call) {
  if (as_read(*call)) return each_image(call, pool_pixels<Watched>);
  if (!small_plane(*call)) return each_image(call, pool_strips<Max>);
  pool_planes<Watched>(call, [](const PoolCall& g) { each_image(&g, pool_strips<Max>); });
}

void average_pool(const PoolCall* call) {
  if (as_read(*call)) return each_image(call, pool_pixels<Sum>);
  if (!small_plane(*call)) return each_image(call, pool_strips<Sum>);
  pool_planes<Sum>(call, [](const PoolCall&) {});
}

inline Span adaptive_window(int64_t i, int64_t in, int64_t out) {
  return {i * in / out, ((i + 1) * in + out - 1) / out};
}

void adaptive_average(const PoolCall& g) {
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
void adaptive_average_pool(const PoolCall* call) {
  each_image(call, adaptive_average);
}

}  // namespace
}  // namespace fastconv
