// Pooling of pixels (NHWC) in small windows, folded as they are read, written once over simd/: see PoolUkernel in ukernel.h.
//
// Every column of a window is folded from top to bottom, then columns from left to right. Windows of three or five columns one or two
// pixels apart keep the columns that the next window has too in registers, some channels at a time along the row, and two output rows at once,
// which share input rows. Images that come from memory are fetched from end to end, in the order in which they lie there, while the rows
// before are folded: pieces of several rows in turns are not foreseen by the processor, and reach half of the speed.
#pragma once

#include "cpu/pool/fold_body.h"

namespace fastconv {
namespace {

// One column of kOut outputs of kRows rows each, every one kDown rows below the one before.
template <class R, int kRows, int kDown, int kOut>
inline void fold_column(const float* at, int64_t ld, F out[kOut], F& seen) {
  constexpr int kSeen = kRows + (kOut - 1) * kDown;
  F x[kSeen];
#pragma GCC unroll 16
  for (int r = 0; r < kSeen; ++r) {
    x[r] = simd::load(at + r * ld);
    if (kL == 16) simd::keep(x[r]);  // which is used more than once, and registers are many
  }
  F s = x[0];
#pragma GCC unroll 16
  for (int r = 1; r < kSeen; ++r) s = seen_with<R>(x[r], s);
  seen = seen_with<R>(s, seen);
  if constexpr (kOut % 2 == 0 && kDown == 1 && R::kShare) {
    // Two outputs share all of their rows but one each.
#pragma GCC unroll 2
    for (int o = 0; o < kOut; o += 2) {
      F both = x[o + 1];
#pragma GCC unroll 8
      for (int r = 2; r < kRows; ++r) both = R::step(both, x[o + r]);
      out[o] = R::step(x[o], both);
      out[o + 1] = R::step(both, x[o + kRows]);
    }
  } else {
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      out[o] = x[o * kDown];
#pragma GCC unroll 8
      for (int r = 1; r < kRows; ++r) out[o] = R::step(out[o], x[o * kDown + r]);
    }
  }
}

// A run of output pixels of one row, or a whole row.
struct Run {
  const float* src;  // first window; slide: column 0 of the image in the first row of the windows
  float* dst;
  int64_t ld, c, count;           // of src: floats between rows of a window; channels; pixels
  int64_t dst_ld;                 // between two output rows
  int64_t rows, cols, tap, step;  // of a window; floats between its columns, and between windows
  Divisor by;                     // of pixels inner_begin..inner_end-1, whose windows lie inside the image
  int64_t y, inner_begin, inner_end;
  bool even;           // that divisor, of all pixels
  bool near;           // what comes soon in the same rows is fetched
  const float* ahead;  // what the next output rows see newly, and are fetched meanwhile from end to end; or null
};

// Reads as columns outside the image: kMostVectors vectors, rows 0 floats apart.
constexpr int kMostVectors = 4;
template <class R>
struct Outside {
  alignas(64) float v[kMostVectors * kL];
  constexpr Outside() : v() {
    for (float& x : v) x = R::kIdentity;
  }
};
template <class R>
constexpr Outside<R> kOutside{};

// A whole row of windows of kRows rows and kCols columns kStep pixels apart, kOut output rows, kV vectors of channels. Columns outside the image hold the
// identity: those of the first window beside its fresh columns, and fresh ones at the end of the row.
// (Not inlined, nor is read_run: each loop gets all registers.)
template <class R, int kRows, int kCols, int kStep, int kOut, int kV, bool kStream>
[[gnu::noinline]] void slide(const PoolCall& g, const Run& run, int64_t channel, F& watched) {
  constexpr int kKept = kCols - kStep, kFresh = kStep * kStep * kOut;
  const int64_t c = run.c, ld = run.ld, width = g.iw, dst_ld = run.dst_ld, count = run.count;
  const float* const src = run.src + channel;
  float* dst = run.dst + channel;
  F kept[kKept][kV][kOut], seen[kV];
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) seen[v] = simd::zero();
  int64_t at = -g.pl;
#pragma GCC unroll 4
  for (int i = 0; i < kKept; ++i, ++at)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      const bool inside = at >= 0 && at < width;
      fold_column<R, kRows, kStep, kOut>(inside ? src + at * c + v * kL : kOutside<R>.v, inside ? ld : 0, kept[i][v],
                                         seen[v]);
    }
  const float* next = src + at * c;
  const float* ahead = run.ahead ? run.ahead + channel * count * kFresh : nullptr;
  const float* dst_ahead = run.dst + kOut * dst_ld + channel * count * kOut;
  Divisor by = run.by;
  for (int64_t x = 0; x < count; ++x, at += kStep, next += kStep * c, dst += c) {
    const float* column[kStep];
    int64_t row[kStep];
#pragma GCC unroll 2
    for (int s = 0; s < kStep; ++s) {
      const bool inside = at + s < width;
      column[s] = inside ? next + s * c : kOutside<R>.v;
      row[s] = inside ? ld : 0;
    }
    if constexpr (R::kSums) {
      const bool inner = x >= run.inner_begin && x < run.inner_end;
      if (!run.even) by = inner ? run.by : divisor_of(divisor_at(g, run.y, x));
    }
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      if (ahead) {
#pragma GCC unroll 8
        for (int t = 0; t < kFresh; t += kLine / kL) __builtin_prefetch(ahead + t * kL, 0, 2);
        ahead += kFresh * kL;
        if constexpr (!kStream) {
#pragma GCC unroll 2
          for (int o = 0; o < kOut; o += kLine / kL) __builtin_prefetch(dst_ahead + o * kL, 0, 2);
          dst_ahead += kOut * kL;
        }
      }
      F fresh[kStep][kOut];
#pragma GCC unroll 2
      for (int s = 0; s < kStep; ++s) fold_column<R, kRows, kStep, kOut>(column[s] + v * kL, row[s], fresh[s], seen[v]);
#pragma GCC unroll 4
      for (int o = 0; o < kOut; ++o) {
        F window[kCols];
#pragma GCC unroll 8
        for (int i = 0; i < kCols; ++i)
          window[i] = i < kKept ? kept[i < kKept ? i : 0][v][o] : fresh[i < kKept ? 0 : i - kKept][o];
        F m = window[0];
#pragma GCC unroll 8
        for (int i = 1; i < kCols; ++i) m = R::step(m, window[i]);
        put<kStream>(dst + o * dst_ld + v * kL, R::finish(m, by));
#pragma GCC unroll 8
        for (int i = 0; i < kKept; ++i) kept[i][v][o] = window[i + kStep];
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) watched = seen_with<R>(seen[v], watched);
}

// Channels from..c-1 of all pixels; kRows and kCols are the rows and columns of their windows where known, or 0.
template <class R, int kRows, int kCols, bool kStream>
[[gnu::noinline]] void read_run(const Run& run, int64_t from, F& watched) {
  const int64_t rows = kRows ? kRows : run.rows, cols = kCols ? kCols : run.cols;
  const int64_t ld = run.ld, tap = run.tap, c = run.c;
  const Divisor by = run.by;
  F seen[2] = {simd::zero(), simd::zero()};
  const auto window = [&](auto load, F& met) {
    F total = simd::zero();
#pragma GCC unroll 4
    for (int64_t t = 0; t < cols; ++t) {
      F m = load(t * tap), s = m;
#pragma GCC unroll 4
      for (int64_t r = 1; r < rows; ++r) {
        const F x = load(t * tap + r * ld);
        m = R::step(m, x);
        s = seen_with<R>(x, s);
      }
      met = seen_with<R>(s, met);
      total = t == 0 ? m : R::step(total, m);
    }
    return R::finish(total, by);
  };
  for (int64_t x = 0; x < run.count; ++x) {
    const float* src = run.src + x * run.step;
    float* dst = run.dst + x * c;
    int64_t j = from;
    const auto vector = [&](int64_t at, F& met) {
      if constexpr (kRows == 2 && kCols == 2) {
        if (run.ahead) {
          const float* ahead = run.ahead + 4 * (x * c + at);
#pragma GCC unroll 4
          for (int t = 0; t < 4; t += kLine / kL) __builtin_prefetch(ahead + t * kL, 0, 2);
        } else if (run.near) {
#pragma GCC unroll 2
          for (int64_t t = 0; t < 2; ++t) {
            __builtin_prefetch(src + at + t * tap + kAhead);
            __builtin_prefetch(src + at + t * tap + ld + kAhead);
          }
        }
      }
      put<kStream>(dst + at, window([&](int64_t i) { return simd::load(src + at + i); }, met));
    };
    for (; j + 2 * kL <= c; j += 2 * kL) vector(j, seen[0]), vector(j + kL, seen[1]);
    for (; j + kL <= c; j += kL) vector(j, seen[0]);
    if (j < c) {
      const Mask m = simd::first(c - j);
      simd::store(dst + j, window([&](int64_t i) { return simd::load(src + j + i, m); }, seen[0]), m);
    }
  }
  watched = seen_with<R>(seen[0], seen_with<R>(seen[1], watched));
}

// Windows of so many columns slide.
inline bool slides(const PoolCall& g) {
  return g.kh == g.kw && (g.kw == 3 || g.kw == 5) && g.dh == 1 && g.dw == 1 && g.sw <= 2 && g.pl + g.sw <= g.kw;
}
inline bool as_read(const PoolCall& g) {
  return g.c >= kL && ((g.kh <= 3 && g.kw <= 3) || slides(g));
}

// Whole vectors of channels of `count` output rows; returns how many channels are done.
template <class R, int kRows, int kCols, int kStep, int kOut, bool kStream>
int64_t slide_channels(const PoolCall& g, const Run& run, F& seen) {
  constexpr int kV = kCols == 3 ? (kL == 16 ? 4 : 2) : (kL == 16 ? 2 : 1);
  int64_t j = 0;
  for (; j + kV * kL <= run.c; j += kV * kL) slide<R, kRows, kCols, kStep, kOut, kV, kStream>(g, run, j, seen);
  if constexpr (kV > 1)
    for (; j + kL <= run.c; j += kL) slide<R, kRows, kCols, kStep, kOut, 1, kStream>(g, run, j, seen);
  return j;
}
template <class R, int kRows, int kCols, bool kStream>
int64_t slide_row(const PoolCall& g, const Run& run, int64_t count, F& seen) {
  if constexpr (kRows == kCols) {
    if (g.sw == 2 && count == 2) return slide_channels<R, kRows, kCols, 2, 2, kStream>(g, run, seen);
    if (g.sw == 1 && count == 2) return slide_channels<R, kRows, kCols, 1, 2, kStream>(g, run, seen);
  }
  if (g.sw == 2) return slide_channels<R, kRows, kCols, 2, 1, kStream>(g, run, seen);
  return slide_channels<R, kRows, kCols, 1, 1, kStream>(g, run, seen);
}
template <class R, bool kStream>
int64_t slide_rows(const PoolCall& g, const Run& run, int64_t count, F& seen) {
  if (g.kw == 3 && run.rows == 3) return slide_row<R, 3, 3, kStream>(g, run, count, seen);
  if (g.kw == 3 && run.rows == 2) return slide_row<R, 2, 3, kStream>(g, run, count, seen);
  if (g.kw == 5 && run.rows == 5) return slide_row<R, 5, 5, kStream>(g, run, count, seen);
  if (g.kw == 5 && run.rows == 4) return slide_row<R, 4, 5, kStream>(g, run, count, seen);
  if (g.kw == 5 && run.rows == 3) return slide_row<R, 3, 5, kStream>(g, run, count, seen);
  return 0;
}

// Output rows y..y+count-1, count 1 or, where windows slide by one row and none leaves the image above or below, 2.
template <class R, bool kStream>
void pixel_rows(const PoolCall& g, int64_t y, int64_t count, F& seen) {
  const int64_t h0 = y * g.sh - g.pt, c = g.c, line = g.iw * c, tap = g.dw * c, ld = g.dh * line;
  float* out = g.dst + y * g.ow * c;
  const Span rows = taps_inside(h0, g.dh, g.kh, g.ih);
  const int64_t high = rows.end - rows.begin;
  const float* src = g.src + (h0 + rows.begin * g.dh) * line;
  const int64_t room = g.iw - 1 - (g.kw - 1) * g.dw + g.pl;
  const int64_t inner_begin = smaller((g.pl + g.sw - 1) / g.sw, g.ow);
  const int64_t inner_end = larger(inner_begin, room < 0 ? 0 : smaller(room / g.sw + 1, g.ow));
  Run run{src,    out,      ld, c, g.ow,        g.ow * c,  high,  g.kw,
          tap,    g.sw * c, {}, y, inner_begin, inner_end, false, g.near != 0 || c > 4 * kLine,
          nullptr};
  run.ahead = g.far ? g.src + (h0 + (count - 1) * g.sh + (g.kh - 1) * g.dh + 1) * line : nullptr;
  run.even = !R::kSums || even_row(g);
  if (R::kSums) run.by = divisor_of(divisor_at(g, y, smaller(inner_begin, g.ow - 1)));
  int64_t done = 0;
  if constexpr (R::kWatch || R::kSums)
    if (slides(g)) done = slide_rows<R, kStream>(g, run, count, seen);
  if (done == c) return;
  for (int64_t o = 0; o < count; ++o, out += run.dst_ld, src += g.sh * line)
    for (int64_t x = 0; x < g.ow;) {
      const bool inner = x >= inner_begin && x < inner_end;
      const int64_t left = x * g.sw - g.pl, divisor = R::kSums ? divisor_at(g, y + o, x) : 1;
      const Span cols = taps_inside(left, g.dw, g.kw, g.iw);
      run.src = src + (left + cols.begin * g.dw) * c, run.dst = out + x * c;
      run.count = inner ? inner_end - x : 1, run.cols = cols.end - cols.begin;
      run.by = divisor_of(divisor);
      // Windows of 2x2 that do not overlap: four lines read for one written.
      run.ahead = g.far && g.kh == 2 && g.kw == 2 && g.sh == 2 && g.sw == 2 ? src + g.sh * line + 4 * x * c : nullptr;
      if (high == 0 || run.cols == 0) {
        fill(run.dst, c, R::kSums ? 0.0f : R::kIdentity);
        run.count = 1;
      } else if (high == 2 && run.cols == 2) {
        read_run<R, 2, 2, kStream>(run, done, seen);
      } else {
        read_run<R, 0, 0, kStream>(run, done, seen);
      }
      x += run.count;
    }
}

// All output rows of the call.
template <class R, bool kStream>
void pool_pixels_by(const PoolCall& g) {
  const bool pairs = slides(g) && g.sh == g.sw;
  for (int64_t y = g.row_begin; y < g.row_end;) {
    const int64_t h0 = y * g.sh - g.pt;
    const int64_t count = pairs && y + 1 < g.row_end && h0 >= 0 && h0 + g.sh + g.kh <= g.ih ? 2 : 1;
    F seen = simd::zero();
    pixel_rows<R, kStream>(g, y, count, seen);
    if constexpr (R::kWatch)
      if (met_nan(seen))
        for (int64_t o = 0; o < count; ++o) pixel_rows<Max, false>(g, y + o, 1, seen);
    y += count;
  }
}

template <class R>
void pool_pixels(const PoolCall& g) {
  if constexpr (kMinds)
    if (g.streaming && g.c % kLine == 0 && to_line(g.dst) == 0) {
      pool_pixels_by<R, true>(g);
      return simd::stream_end();
    }
  pool_pixels_by<R, false>(g);
}

}  // namespace
}  // namespace fastconv
