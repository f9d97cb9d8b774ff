// Pooling of planes (NCHW), as they are read, written once over simd/: see PoolUkernel in ukernel.h. Lanes are output columns.
//
// Stride 1, as many output columns as input columns: a plane is one run of floats. Its columns are folded from top to bottom vector by vector, wherever rows
// begin, and the folded neighbours to the left and right are shifted in; lanes whose neighbour lies in another row take the identity.
// Stride 2, two or three columns: folded columns are parted into even and odd ones in registers. Two narrow output rows share a vector.
// Every column of a window is folded from top to bottom, then columns from left to right.
#pragma once

#include "cpu/pool/fold_body.h"

namespace fastconv {
namespace {

// Divides the sums of output columns x0..x1-1 of row y.
inline void divide_row(const PoolCall& g, int64_t y, int64_t x0, int64_t x1, float* out) {
  const bool pad = g.count_include_pad != 0;
  // Columns full_begin..full_end-1 count whole windows.
  const int64_t room = g.iw + (pad ? g.pr : 0) + g.pl - g.kw;
  const int64_t full_begin = pad ? 0 : smaller((g.pl + g.sw - 1) / g.sw, g.ow);
  const int64_t full_end = larger(full_begin, room < 0 ? 0 : smaller(room / g.sw + 1, g.ow));
  for (int64_t x = x0; x < x1;) {
    const bool full = g.divisor != 0 || (x >= full_begin && x < full_end);
    const int64_t next = full ? smaller(x1, g.divisor != 0 ? g.ow : full_end) : x + 1;
    divide(out + (x - x0) * g.c, (next - x) * g.c, divisor_at(g, y, x));
    x = next;
  }
}

// What is the same for all planes of a call.
constexpr int64_t kFlatWidth = 256;
struct Plane {
  int64_t inner_begin, inner_end;    // of the call's rows, those whose windows have all their rows
  bool even;                         // every sum is divided by the same, at least those of a row (stride 2)
  Divisor by;                        // of inner rows, or 1 where it is not
  simd::Index first, second, third;  // of two narrow rows: which lanes hold the columns of their windows
  // Stride 1: for each vector of positions, from where a row begins until one does again, the lanes that have no neighbour one and two columns to the
  // left and to the right: 16 bits each.
  int64_t vectors;
  uint64_t edges[kFlatWidth];
};

// Columns of `count` rows, ld apart, folded from top to bottom; of `some` lanes only, where the others are of no use.
template <class R>
inline __attribute__((always_inline)) F fold_whole(const float* at, int64_t ld, int64_t count, F& seen) {
  F m = simd::load(at), s = m;
#pragma GCC unroll 4
  for (int64_t r = 1; r < count; ++r) {
    const F x = simd::load(at + r * ld);
    m = R::step(m, x);
    s = seen_with<R>(x, s);
  }
  seen = seen_with<R>(s, seen);
  return m;
}
template <class R>
inline __attribute__((always_inline)) F fold_some(const float* at, int64_t ld, int64_t count, Mask some, F& seen) {
  F m = simd::load(at, some), s = m;
#pragma GCC unroll 4
  for (int64_t r = 1; r < count; ++r) {
    const F x = simd::load(at + r * ld, some);
    m = R::step(m, x);
    s = seen_with<R>(x, s);
  }
  seen = seen_with<R>(s, seen);
  return m;
}

// --- stride 1 -------------------------------------------------------------------------------------------------------------

inline bool flat(const PoolCall& g) {
  return g.c == 1 && g.sh == 1 && g.sw == 1 && g.dh == 1 && g.dw == 1 && g.kh == g.kw && (g.kw == 3 || g.kw == 5) &&
         g.pl == g.kw / 2 && g.ow == g.iw && g.iw >= g.kw && g.iw <= kFlatWidth;
}

inline void find_edges(int64_t width, Plane& p) {
  p.vectors = 0;
  int64_t at = 0;  // column
  do {
    uint64_t edges = 0;
    for (int lane = 0; lane < kL; ++lane) {
      const uint64_t one = at < 1, two = at < 2, last = at >= width - 1, before_last = at >= width - 2;
      edges |= (one | two << 16 | last << 32 | before_last << 48) << lane;
      at = last ? 0 : at + 1;
    }
    p.edges[p.vectors++] = edges;
  } while (at != 0);
}

// Positions begin..end-1 of a plane, counted over its outputs, of which a row has as many as columns. Both lie between rows: nothing is shifted in across
// them. Windows of kSize x kSize.
template <class R, int kSize, bool kStream>
[[gnu::noinline]] void flat_run(const PoolCall& g, int64_t begin, int64_t end, const Plane& p, F& watched) {
  constexpr int kSide = kSize / 2;
  const int64_t width = g.iw, plane = g.ih * width, top = g.pt * width;
  const float* const src = g.src;
  float* const dst = g.dst;
  const F identity = simd::set1(R::kIdentity);
  const Divisor by = p.by;
  F seen = simd::zero();
  // Folded columns of a vector of positions, all of whose rows exist, or not.
  const auto inner = [&](int64_t i)
                         __attribute__((always_inline)) { return fold_whole<R>(src + i - top, width, kSize, seen); };
  const auto outer = [&](int64_t i) {
    F m = identity;
    for (int64_t r = 0; r < kSize; ++r) {
      const int64_t at = i - top + r * width;
      if (at <= -kL || at >= plane) continue;
      const Mask inside = simd::range(at < 0 ? -at : 0, smaller(plane - at, kL));
      const F x = simd::load(src + at, inside);
      m = R::step(m, simd::select(inside, x, identity));
      seen = seen_with<R>(x, seen);
    }
    return m;
  };
  const int64_t inner_begin = top, inner_end = plane + top - (kSize - 1) * width - kL + 1;
  const auto column = [&](int64_t i) { return i >= inner_begin && i < inner_end ? inner(i) : outer(i); };
  F before = identity, here = column(begin);
  const uint64_t *edge = p.edges, *const edge_end = p.edges + p.vectors;
  const auto output = [&](int64_t i, F after) __attribute__((always_inline)) {
    const uint64_t edges = *edge++;
    if (edge == edge_end) edge = p.edges;
    F window[kSize];
    window[kSide] = here;
    window[kSide - 1] = simd::select(simd::lanes(edges), identity, simd::slide_up<1>(before, here));
    window[kSide + 1] = simd::select(simd::lanes(edges >> 32), identity, simd::slide_down<1>(here, after));
    if constexpr (kSide == 2) {
      window[0] = simd::select(simd::lanes(edges >> 16), identity, simd::slide_up<2>(before, here));
      window[4] = simd::select(simd::lanes(edges >> 48), identity, simd::slide_down<2>(here, after));
    }
    F m = window[0];
#pragma GCC unroll 8
    for (int t = 1; t < kSize; ++t) m = R::step(m, window[t]);
    m = R::finish(m, by);
    if (i + kL <= end)
      put<kStream>(dst + i, m);
    else
      simd::store(dst + i, m, simd::first(end - i));
    before = here;
    here = after;
  };
  int64_t i = begin;
  for (; i + kL < end && i + kL < inner_begin; i += kL) output(i, outer(i + kL));
  for (; i + kL < end && i + kL < inner_end; i += kL) output(i, inner(i + kL));
  for (; i + kL < end; i += kL) output(i, outer(i + kL));
  output(i, identity);
  watched = seen_with<R>(seen, watched);
}

// --- stride 2 -------------------------------------------------------------------------------------------------------------

inline bool halves(const PoolCall& g) {
  return g.c == 1 && g.sw == 2 && g.dw == 1 && (g.kw == 2 || g.kw == 3) && g.kh <= 3;
}

// Rows of a window that exist: the first of them, and how many.
struct Rows {
  const float* src;
  int64_t count;
};
inline Rows rows_of(const PoolCall& g, int64_t y) {
  const int64_t h0 = y * g.sh - g.pt;
  const Span rows = taps_inside(h0, g.dh, g.kh, g.ih);
  return {g.src + (h0 + rows.begin * g.dh) * g.iw, rows.end - rows.begin};
}

// Folded columns at..at + kL - 1; the identity where there is no image. kRows rows, or 0: as many as there are.
template <class R, int kRows>
inline F fold_columns(const PoolCall& g, const Rows& rows, int64_t at, F& seen) {
  const int64_t ld = g.dh * g.iw, count = kRows ? kRows : rows.count;
  const float* const src = rows.src + at;
  if (at >= 0 && at + kL <= g.iw && count > 0) return fold_whole<R>(src, ld, count, seen);
  const F identity = simd::set1(R::kIdentity);
  if (at <= -kL || at >= g.iw || count == 0) return identity;
  const Mask inside = simd::range(at < 0 ? -at : 0, smaller(g.iw - at, kL));
  return simd::select(inside, fold_some<R>(src, ld, count, inside, seen), identity);
}

// One output row.
template <class R, int kRows, int kCols, bool kStream>
[[gnu::noinline]] void halve_row(const PoolCall& g, const Rows& rows, float* dst, const Divisor& divisor, F& watched) {
  const Divisor by = divisor;
  F seen = simd::zero();
  int64_t at = -g.pl;
  F a = fold_columns<R, kRows>(g, rows, at, seen), b = fold_columns<R, kRows>(g, rows, at + kL, seen);
  for (int64_t x = 0; x < g.ow; x += kL) {
    const F even = simd::even(a, b);
    F m = R::step(even, simd::odd(a, b));
    at += 2 * kL;
    if (x + kL < g.ow) {
      a = fold_columns<R, kRows>(g, rows, at, seen), b = fold_columns<R, kRows>(g, rows, at + kL, seen);
    } else if (kCols == 3 && x + kL == g.ow) {
      a = fold_columns<R, kRows>(g, rows, at, seen);
    }
    if (kCols == 3) m = R::step(m, simd::slide_down<1>(even, a));  // of what follows, lane 0 is even
    m = R::finish(m, by);
    if (x + kL <= g.ow)
      put<kStream>(dst + x, m);
    else
      simd::store(dst + x, m, simd::first(g.ow - x));
  }
  watched = seen_with<R>(seen, watched);
}

// Columns at..at + kL - 1 that exist.
inline Mask inside(const PoolCall& g, int64_t at) {
  const int64_t lo = larger(smaller(-at, kL), 0);
  return simd::range(lo, larger(smaller(g.iw - at, kL), lo));
}

// What is fetched while rows are read: nothing, what comes kAhead floats on in the same rows, or, two rows of the plane for each one of the output,
// from end to end what the windows of the kRowsAhead-th output row from here see first.
enum class Fetch { kNone, kNear, kFar };
constexpr int64_t kRowsAhead = 4;

// Of three rows the first was fetched for the windows above.
template <int kRows, Fetch kFetch>
inline void fetch_new(const float* at, int64_t ld) {
  if constexpr (kFetch == Fetch::kNear)
#pragma GCC unroll 4
    for (int r = kRows > 2 ? 1 : 0; r < kRows; ++r) __builtin_prefetch(at + r * ld + kAhead);
}

// As much as a vector of outputs reads newly.
template <Fetch kFetch>
inline void fetch_far(const float* at) {
  if constexpr (kFetch == Fetch::kFar)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i += kLine / kL) __builtin_prefetch(at + i * kL, 0, 2);
}

// body(src, dst) for each plane of the call: where the windows of row `begin` begin, and its outputs.
template <class Body>
inline __attribute__((always_inline)) void each_plane(const PoolCall& g, int64_t begin, Body body) {
  const float* src = g.src + (begin * g.sh - g.pt) * g.iw - g.pl;
  float* dst = g.dst + begin * g.ow;
  for (int64_t i = 0; i < g.images; ++i, src += g.src_image, dst += g.dst_image) body(src, dst);
}

// Output rows begin..end-1 of all planes, whose windows have all their rows; masks only where a row begins and ends.
template <class R, int kRows, int kCols, Fetch kFetch, bool kStream>
[[gnu::noinline]] void halve_inner(const PoolCall& g, int64_t begin, int64_t end, const Divisor& divisor, F& watched) {
  const int64_t ld = g.dh * g.iw, step = g.sh * g.iw, vectors = (g.ow + kL - 1) / kL,
                at_last = (vectors - 1) * 2 * kL - g.pl;
  const Mask first_a = inside(g, -g.pl), first_b = inside(g, kL - g.pl), last_a = inside(g, at_last),
             last_b = inside(g, at_last + kL), past = inside(g, at_last + 2 * kL),
             out = simd::first(g.ow - (vectors - 1) * kL);
  const bool fits = g.ow % kL == 0, wide = simd::any(last_b);  // wide: the last windows see more than one vector
  const F identity = simd::set1(R::kIdentity);
  const Divisor by = divisor;
  F seen[2] = {simd::zero(), simd::zero()};
  const auto whole = [&](const float* at, F& met) __attribute__((always_inline)) {
    fetch_new<kRows, kFetch>(at, ld);
    return fold_whole<R>(at, ld, kRows, met);
  };
  const auto part = [&](const float* at, Mask some, F& met) __attribute__((always_inline)) {
    fetch_new<kRows, kFetch>(at, ld);
    return simd::select(some, fold_some<R>(at, ld, kRows, some, met), identity);
  };
  each_plane(g, begin, [&](const float* src, float* dst) __attribute__((always_inline)) {
    for (int64_t y = begin; y < end; ++y, src += step, dst += g.ow) {
      fetch_far<kFetch>(src + kRowsAhead * step);
      F a = part(src, first_a, seen[0]), b = part(src + kL, first_b, seen[1]);
      F even = simd::even(a, b), odd = simd::odd(a, b);
      for (int64_t v = 1; v < vectors; ++v) {
        const float* at = src + v * 2 * kL;
        fetch_far<kFetch>(src + kRowsAhead * step + v * 4 * kL);
        const bool last = v + 1 == vectors;
        a = last ? part(at, last_a, seen[0]) : whole(at, seen[0]);
        b = !last ? whole(at + kL, seen[1]) : wide ? part(at + kL, last_b, seen[1]) : identity;
        const F next = simd::even(a, b);
        F m = R::step(even, odd);
        if (kCols == 3) m = R::step(m, simd::slide_down<1>(even, next));
        put<kStream>(dst + (v - 1) * kL, R::finish(m, by));
        even = next, odd = simd::odd(a, b);
      }
      F m = R::step(even, odd);
      if (kCols == 3) {
        if (fits) a = part(src + vectors * 2 * kL, past, seen[0]);
        m = R::step(m, simd::slide_down<1>(even, a));
      }
      m = R::finish(m, by);
      if (fits)
        put<kStream>(dst + (vectors - 1) * kL, m);
      else
        simd::store(dst + (vectors - 1) * kL, m, out);
    }
  });
  watched = seen_with<R>(seen[0], seen_with<R>(seen[1], watched));
}

// Two rows of kL / 2 windows of three columns see one column more than a vector holds, which is read by itself.
inline bool one_too_many(const PoolCall& g) {
  return g.kw == 3 && 2 * g.ow == kL;
}
inline simd::Index narrow_columns(const PoolCall& g, int64_t column) {
  int32_t from[kL];
  for (int i = 0; i < kL; ++i) {
    const int64_t row = i < g.ow ? 0 : 1, at = 2 * (i - row * g.ow) + column;
    from[i] = static_cast<int32_t>(smaller(at, kL - 1) + row * kL);
  }
  return simd::index(from);
}

// The same, two output rows of at most kL / 2 columns each in one vector.
template <class R, int kRows, int kCols, Fetch kFetch>
[[gnu::noinline]] void halve_narrow(const PoolCall& g, int64_t begin, int64_t end, const Plane& p, F& watched) {
  const bool full = one_too_many(g);
  const simd::Index first = p.first, second = p.second, third = p.third;
  const bool exists = kL - g.pl < g.iw;  // that column
  const Mask some = inside(g, -g.pl), one = simd::first(g.ow), two = simd::first(2 * g.ow);
  const Mask upper = simd::range(kL / 2 - 1, kL / 2), lower = simd::range(kL - 1, kL);
  const int64_t ld = g.dh * g.iw, step = g.sh * g.iw, ow = g.ow;
  const F identity = simd::set1(R::kIdentity);
  const Divisor by = p.by;
  F seen[2] = {simd::zero(), simd::zero()};
  const auto columns = [&](const float* at, Mask lanes, F& met) __attribute__((always_inline)) {
    fetch_new<kRows, kFetch>(at, ld);
    return simd::select(lanes, fold_some<R>(at, ld, kRows, lanes, met), identity);
  };
  // One column, in all lanes.
  const auto column = [&](const float* at, F& met) __attribute__((always_inline)) {
    F m = simd::set1(at[0]), s = m;
#pragma GCC unroll 4
    for (int64_t r = 1; r < kRows; ++r) {
      const F x = simd::set1(at[r * ld]);
      m = R::step(m, x);
      s = seen_with<R>(x, s);
    }
    met = seen_with<R>(s, met);
    return m;
  };
  each_plane(g, begin, [&](const float* src, float* dst) __attribute__((always_inline)) {
    for (int64_t y = begin; y < end; y += 2, src += 2 * step, dst += 2 * ow) {
      const bool pair = y + 1 < end;
      const float* below = pair ? src + step : src;
      const F a = columns(src, some, seen[0]), b = columns(below, some, seen[1]);
      F m = R::step(simd::pick(a, b, first), simd::pick(a, b, second));
      if (kCols == 3) {
        F right = simd::pick(a, b, third);
        if (full) {
          right = simd::select(upper, exists ? column(src + kL, seen[0]) : identity, right);
          right = simd::select(lower, exists ? column(below + kL, seen[1]) : identity, right);
        }
        m = R::step(m, right);
      }
      simd::store(dst, R::finish(m, by), pair ? two : one);
    }
  });
  watched = seen_with<R>(seen[0], seen_with<R>(seen[1], watched));
}

// --- both -----------------------------------------------------------------------------------------------------------------

template <int kRows>
struct Count {
  static constexpr int kCount = kRows;
};

inline bool small_plane(const PoolCall& g) {
  return flat(g) || halves(g);
}

template <class R>
void describe(const PoolCall& g, Plane& p) {
  const int64_t room = g.ih - 1 - (g.kh - 1) * g.dh + g.pt;
  p.inner_begin = larger(g.row_begin, smaller((g.pt + g.sh - 1) / g.sh, g.row_end));
  p.inner_end = larger(p.inner_begin, smaller(g.row_end, room < 0 ? 0 : room / g.sh + 1));
  p.even = even_row(g);
  if (flat(g) && p.even && g.divisor == 0) {
    const bool pad = g.count_include_pad != 0;
    p.even = counted(-g.pt, g.kh, g.ih, g.pb, pad) == g.kh && counted(g.oh - 1 - g.pt, g.kh, g.ih, g.pb, pad) == g.kh;
  }
  p.by = divisor_of(R::kSums && p.even ? divisor_at(g, smaller(p.inner_begin, g.oh - 1), 0) : 1);
  if (flat(g)) {
    find_edges(g.iw, p);
  } else if (2 * g.ow <= kL) {
    p.first = narrow_columns(g, 0), p.second = narrow_columns(g, 1), p.third = narrow_columns(g, 2);
  }
}

template <class R, int kCols, Fetch kFetch, bool kStream>
void halve_inside(const PoolCall& g, const Plane& p, F& seen) {
  const auto inner = [&](auto rows) {
    constexpr int kRows = decltype(rows)::kCount;
    if (2 * g.ow <= kL) return halve_narrow<R, kRows, kCols, kFetch>(g, p.inner_begin, p.inner_end, p, seen);
    halve_inner<R, kRows, kCols, kFetch, kStream>(g, p.inner_begin, p.inner_end, p.by, seen);
  };
  if (g.kh == 3) inner(Count<3>{});
  if (g.kh == 2) inner(Count<2>{});
  if (g.kh == 1) inner(Count<1>{});
}

template <class R, int kCols, bool kStream>
void halve_rows(const PoolCall& g, const Plane& p, F& seen) {
  if (p.inner_begin < p.inner_end) {
    constexpr Fetch kNear = kMinds ? Fetch::kNear : Fetch::kNone, kFar = kMinds ? Fetch::kFar : Fetch::kNone;
    if (g.near) {
      halve_inside<R, kCols, kNear, kStream>(g, p, seen);
    } else if (g.far && g.sh == 2) {
      halve_inside<R, kCols, kFar, kStream>(g, p, seen);
    } else {
      halve_inside<R, kCols, Fetch::kNone, kStream>(g, p, seen);
    }
  }
  if (p.inner_begin == g.row_begin && p.inner_end == g.row_end && (!R::kSums || p.even)) return;
  each_image(&g, [&](const PoolCall& one) {
    for (int64_t y = g.row_begin; y < g.row_end; ++y) {
      if (y == p.inner_begin) y = p.inner_end;
      if (y == g.row_end) break;
      const Divisor by = divisor_of(R::kSums && p.even ? divisor_at(g, y, 0) : 1);
      halve_row<R, 0, kCols, kStream>(one, rows_of(one, y), one.dst + y * g.ow, by, seen);
    }
    for (int64_t y = g.row_begin; R::kSums && !p.even && y < g.row_end; ++y)
      divide_row(g, y, 0, g.ow, one.dst + y * g.ow);
  });
}

template <class R, bool kStream>
void flat_rows(const PoolCall& g, const Plane& p, F& seen) {
  const int64_t begin = g.row_begin * g.ow, end = g.row_end * g.ow;
  each_image(&g, [&](const PoolCall& one) {
    g.kw == 3 ? flat_run<R, 3, kStream>(one, begin, end, p, seen) : flat_run<R, 5, kStream>(one, begin, end, p, seen);
    for (int64_t y = g.row_begin; R::kSums && !p.even && y < g.row_end; ++y)
      divide_row(g, y, 0, g.ow, one.dst + y * g.ow);
  });
}

// The output rows of the call, of all its planes. Says whether a NaN was met, if R watches for it.
template <class R, bool kStream>
bool pool_planes_by(const PoolCall& g, const Plane& p) {
  F seen = simd::zero();
  if (flat(g)) {
    flat_rows<R, kStream>(g, p, seen);
  } else {
    g.kw == 2 ? halve_rows<R, 2, kStream>(g, p, seen) : halve_rows<R, 3, kStream>(g, p, seen);
  }
  return R::kWatch && met_nan(seen);
}

// Planes that are pooled together, or for a NaN again.
constexpr int64_t kTogether = 16;

// Where windows neither overlap nor leave their plane, planes one behind the other are one high plane.
inline bool joins(const PoolCall& g) {
  return halves(g) && g.kh == g.sh && g.dh == 1 && g.pt == 0 && g.ih == g.oh * g.sh && g.row_begin == 0 &&
         g.row_end == g.oh && g.src_image == g.ih * g.iw && g.dst_image == g.oh * g.ow;
}

// What keeps NaN has the last word: again(planes), for the planes among which there was one.
template <class R, class Again>
void pool_planes(const PoolCall* call, Again again) {
  PoolCall g = *call;
  Plane plane;
  describe<R>(g, plane);
  const int64_t lines = flat(g) ? g.row_begin * g.ow : g.ow;
  const bool stream = g.streaming && lines % kLine == 0 && g.dst_image % kLine == 0 && to_line(g.dst) == 0;
  const bool join = joins(g);
  for (int64_t i = 0; i < call->images; i += kTogether) {
    g.images = smaller(kTogether, call->images - i);
    PoolCall some = g;
    if (join) {
      some.ih *= g.images, some.oh *= g.images, some.images = 1;
      some.row_end = plane.inner_end = some.oh;
    }
    const bool met = stream ? pool_planes_by<R, kMinds>(some, plane) : pool_planes_by<R, false>(some, plane);
    if (met) again(g);
    g.src += g.images * g.src_image, g.dst += g.images * g.dst_image;
  }
  if (stream) simd::stream_end();
}

}  // namespace
}  // namespace fastconv
