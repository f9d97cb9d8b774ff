// Planes to pixels (NCHW -> NHWC) and back, written once over simd/: see LayoutUkernel in ukernel.h.
// Both are the transpose of a matrix, in blocks of kLanes x kLanes. Which rows and columns follow each other is chosen so
// that lines of the target are written whole and in runs. Rows a multiple of 4 KiB apart share one set of the L1, which
// holds fewer lines than a block has rows: in the caches four of these are walked at a time.
// Past the caches whole lines go, so where lines of the target lie across its rows, tiles are turned into private memory
// and leave from there, the one before while the next is turned: reads and writes of memory have to overlap.
// What comes from memory is fetched in runs of rows, a tile before: long ones, but of rows a multiple of 4 KiB apart.
// Three and four channels, the pictures, have shuffles of their own.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;
constexpr int64_t kPage = 1024;  // rows a multiple of so many floats apart share sets of the L1, but for a line
constexpr int64_t kNarrow = 64;  // up to so many rows or columns are walked at once
constexpr int64_t kChunk = 256;  // how far four rows are walked
constexpr int64_t kTile = 4096;  // floats of a tile, about
// Of what comes from memory: floats of a row that are fetched together, and of a tile.
constexpr int64_t kLongRun = 512, kFarTile = 16384;

// count floats from private memory to the target.
inline void leave(const float* src, float* dst, int64_t count) {
  map_run<true>(src, dst, count, [](F v) { return v; });
}

// dst[j * dst_ld + i] = src[i * src_ld + j], i < rows, j < cols; rows and cols at most kL.
inline void turn_part(const float* src, int64_t src_ld, float* dst, int64_t dst_ld, int64_t rows, int64_t cols) {
  const Mask read = simd::first(cols), write = simd::first(rows);
  F r[kL], block[kL];
#pragma GCC unroll 16
  for (int i = 0; i < kL; ++i) r[i] = i < rows ? simd::load(src + i * src_ld, read) : simd::zero();
  simd::transpose(r, block);
#pragma GCC unroll 16
  for (int t = 0; t < kL; ++t)
    if (t < cols) simd::store(dst + t * dst_ld, block[t], write);
}

// Three or four rows to pixels, which lie one behind the other.
template <int kRows>
inline void few_rows(const float* src, int64_t src_ld, float* dst, int64_t cols) {
  int64_t j = 0;
  for (; j + kL <= cols; j += kL) {
    const float* at = src + j;
    if constexpr (kRows == 3) {
      simd::store_pixels3(dst + 3 * j, simd::load(at), simd::load(at + src_ld), simd::load(at + 2 * src_ld));
    } else {
      simd::store_pixels4(dst + 4 * j, simd::load(at), simd::load(at + src_ld), simd::load(at + 2 * src_ld),
                          simd::load(at + 3 * src_ld));
    }
  }
  for (; j < cols; ++j)
    for (int i = 0; i < kRows; ++i) dst[kRows * j + i] = src[i * src_ld + j];
}

// Pixels of three or four channels, one behind the other, to planes.
template <int kCols>
inline void few_cols(const float* src, float* dst, int64_t dst_ld, int64_t rows) {
  int64_t i = 0;
  for (; i + kL <= rows; i += kL) {
    F channel[kCols];
    if constexpr (kCols == 3) {
      simd::load_pixels3(src + 3 * i, channel);
    } else {
      simd::load_pixels4(src + 4 * i, channel);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kCols; ++j) simd::store(dst + j * dst_ld + i, channel[j]);
  }
  for (; i < rows; ++i)
    for (int j = 0; j < kCols; ++j) dst[j * dst_ld + i] = src[kCols * i + j];
}

inline void turn_block(const float* src, int64_t src_ld, float* dst, int64_t dst_ld) {
  F block[kL];
  simd::transpose_block(src, src_ld, block);
#pragma GCC unroll 16
  for (int t = 0; t < kL; ++t) simd::store(dst + t * dst_ld, block[t]);
}

// Three or four rows or columns that lie one behind the other.
inline bool is_few(int64_t rows, int64_t cols, int64_t src_ld, int64_t dst_ld) {
  return (rows == dst_ld && (rows == 3 || rows == 4)) || (cols == src_ld && (cols == 3 || cols == 4));
}
inline void turn_few(const float* src, int64_t src_ld, float* dst, int64_t dst_ld, int64_t rows, int64_t cols) {
  if (rows == dst_ld && rows == 3) return few_rows<3>(src, src_ld, dst, cols);
  if (rows == dst_ld && rows == 4) return few_rows<4>(src, src_ld, dst, cols);
  cols == 3 ? few_cols<3>(src, dst, dst_ld, rows) : few_cols<4>(src, dst, dst_ld, rows);
}

// A part of the source whose lines are fetched towards the L2, some at a time, row by row.
struct Fetching {
  const float* at = nullptr;
  int64_t ld = 0, width = 0, rows = 0;  // width: floats of a row
  int64_t col = 0;

  void some(int64_t lines) {
    for (int64_t t = 0; t < lines && rows > 0; ++t) {
      __builtin_prefetch(at + col, 0, 2);
      col += kLine;
      if (col >= width) col = 0, at += ld, --rows;
    }
  }
};

// --- straight to the target -------------------------------------------------------------------------------------------

// Blocks overlap at the ends: rows, cols >= kL. In strips of so many columns, each from its first row to its last.
void turn_blocks(const LayoutPart& p, int64_t strip) {
  for (int64_t c0 = 0; c0 < p.cols; c0 += strip) {
    const int64_t c1 = smaller(p.cols, c0 + strip);
    for (int64_t i = 0; i < p.rows; i += kL) {
      const int64_t ii = smaller(i, p.rows - kL);
      for (int64_t j = c0; j < c1; j += kL) {
        const int64_t jj = smaller(j, p.cols - kL);
        turn_block(p.src + ii * p.src_ld + jj, p.src_ld, p.dst + jj * p.dst_ld + ii, p.dst_ld);
      }
    }
  }
}

// From memory: in tiles that a small part of the L2 holds and whose rows are runs of the source, fetched row by row during the tile before:
// pieces of many rows in turns are not foreseen by the processor, and reach half of the speed. kStream: lines of the target begin its rows.
template <bool kStream>
void turn_from_memory(const LayoutPart& p) {
  // Rows a multiple of 4 KiB apart share sets of the caches: short runs of more rows, so that lines of the target are written at once.
  const int64_t run = p.src_ld % kPage == 0 ? kNarrow : kLongRun;
  const int64_t wide = smaller(p.cols, run), tall = smaller(p.rows, larger(kFarTile / wide / kLine, 1) * kLine);
  const int64_t down = (p.rows + tall - 1) / tall, tiles = down * ((p.cols + wide - 1) / wide);
  const bool crossing = p.src_ld % kLine != 0 || to_line(p.src) != 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t r0 = tile % down * tall, c0 = tile / down * wide;
    const int64_t r1 = smaller(p.rows, r0 + tall), c1 = smaller(p.cols, c0 + wide);
    Fetching next;
    if (tile + 1 < tiles) {
      const int64_t row = (tile + 1) % down * tall, col = (tile + 1) / down * wide;
      next = {p.src + row * p.src_ld + col, p.src_ld, smaller(p.cols - col, wide) + (crossing ? kLine - 1 : 0),
              smaller(p.rows - row, tall)};
    }
    for (int64_t j = c0; j < c1; j += kL) {
      const int64_t jj = smaller(j, p.cols - kL);
      for (int64_t i = r0; i < r1; i += kL) {
        const int64_t ii = smaller(i, p.rows - kL);
        next.some(kL * kL / kLine + 1);
        F block[kL];
        simd::transpose_block(p.src + ii * p.src_ld + jj, p.src_ld, block);
        float* dst = p.dst + jj * p.dst_ld + ii;
#pragma GCC unroll 16
        for (int t = 0; t < kL; ++t) put<kStream>(dst + t * p.dst_ld, block[t]);
      }
    }
  }
}

// Four rows of the target at a time, along a chunk of it whose lines of the source stay in the L1. rows >= kL, cols >= 4.
void turn_to_four(const LayoutPart& p) {
  for (int64_t r0 = 0; r0 < p.rows; r0 += kChunk)
    for (int64_t j = 0; j < p.cols; j += 4) {
      const int64_t jj = smaller(j, p.cols - 4), r1 = smaller(p.rows, r0 + kChunk);
      for (int64_t i = r0; i < r1; i += kL) {
        const int64_t ii = smaller(i, p.rows - kL);
        const float* src = p.src + ii * p.src_ld + jj;
        F row[4];
        simd::load_quads(src, p.src_ld, row);
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) simd::store(p.dst + (jj + t) * p.dst_ld + ii, row[t]);
      }
    }
}

// Four rows of the source at a time, along a chunk of it whose lines of the target stay in the L1. rows >= 4, cols >= kL.
void turn_from_four(const LayoutPart& p) {
  for (int64_t c0 = 0; c0 < p.cols; c0 += kChunk)
    for (int64_t i = 0; i < p.rows; i += 4) {
      const int64_t ii = smaller(i, p.rows - 4), c1 = smaller(p.cols, c0 + kChunk);
      for (int64_t j = c0; j < c1; j += kL) {
        const int64_t jj = smaller(j, p.cols - kL);
        const float* src = p.src + ii * p.src_ld + jj;
        const F row[4] = {simd::load(src), simd::load(src + p.src_ld), simd::load(src + 2 * p.src_ld),
                          simd::load(src + 3 * p.src_ld)};
        simd::store_quads(p.dst + jj * p.dst_ld + ii, p.dst_ld, row);
      }
    }
}

void turn_small(const LayoutPart& p) {
  for (int64_t i = 0; i < p.rows; i += kL)
    for (int64_t j = 0; j < p.cols; j += kL)
      turn_part(p.src + i * p.src_ld + j, p.src_ld, p.dst + j * p.dst_ld + i, p.dst_ld, smaller(kL, p.rows - i),
                smaller(kL, p.cols - j));
}

// --- by private memory, past the caches -------------------------------------------------------------------------------

// A turned tile on its way out: `pieces` runs, or one that is cut anywhere.
struct Leaving {
  const float* src = nullptr;
  float* dst = nullptr;
  int64_t src_step = 0, dst_step = 0, length = 0, pieces = 0;
  bool one_run = false;

  // About as much as a block turned.
  void some() {
    if (one_run) {
      const int64_t n = smaller(length, kL * kL + to_line(dst));
      leave(src, dst, n);
      src += n, dst += n, length -= n;
      return;
    }
    for (int64_t sent = 0; sent < kL * kL && pieces > 0; sent += length, --pieces, src += src_step, dst += dst_step)
      leave(src, dst, length);
  }
  void rest() {
    while (one_run ? length > 0 : pieces > 0) some();
  }
};

// One tile into private memory. `next`: the same place of the next tile, whose lines are fetched.
inline void turn_tile(const float* src, int64_t src_ld, float* work, int64_t pitch, int64_t rows, int64_t cols,
                      const float* next, Fetching& far, Leaving& before) {
  if (is_few(rows, cols, src_ld, pitch)) return turn_few(src, src_ld, work, pitch, rows, cols);
  for (int64_t i = 0; i < rows; i += kL) {
    const int64_t ii = rows < kL ? 0 : smaller(i, rows - kL);
    for (int64_t j = 0; j < cols; j += kL) {
      const int64_t jj = cols < kL ? 0 : smaller(j, cols - kL);
      const float* from = src + ii * src_ld + jj;
      float* to = work + jj * pitch + ii;
      if (rows < kL || cols < kL) {
        turn_part(from, src_ld, to, pitch, smaller(kL, rows), smaller(kL, cols));
      } else {
        far.some(kL * kL / kLine + 1);
        if (next && j % kLine == 0)
#pragma GCC unroll 16
          for (int t = 0; t < kL; ++t) __builtin_prefetch(next + (ii + t) * src_ld + jj);
        turn_block(from, src_ld, to, pitch);
      }
      before.some();
    }
  }
}

// Where the tile that begins at `begin` ends: `side` further on, the first one where a line ends (`shift` floats before its
// beginning), and never so that less than a line remains.
inline int64_t tile_end(int64_t begin, int64_t size, int64_t side, int64_t shift) {
  const int64_t end = begin + side - (begin == 0 && shift > 0 ? kLine - shift : 0);
  return size - end < kLine ? size : end;
}

void turn_tiles(const LayoutPart& p) {
  // Rows of the target that a tile holds whole leave as one run.
  const bool whole = p.rows == p.dst_ld && p.rows <= LayoutUkernel::kRun;
  const int64_t few = larger(smaller(p.cols, kNarrow), 4);
  const int64_t rows_side = whole ? p.rows : kTile / few / kLine * kLine;
  const int64_t rows_most = whole ? p.rows : smaller(p.rows, rows_side + kLine);
  const int64_t pitch = whole ? p.rows : (rows_most + kLine - 1) / kLine * kLine;
  const int64_t tall = larger(smaller(p.rows, rows_side), whole ? 4 : kLine);
  const int64_t cols_side = larger(kTile / tall / kLine, 1) * kLine;
  const int64_t rows_shift = whole || p.dst_ld % kLine ? 0 : to_line(p.dst);
  const int64_t cols_shift = p.src_ld % kLine ? 0 : to_line(p.src);
  float* work = p.work;
  Leaving before;
  // Rows that leave whole are few, so that long runs of all of them are fetched together.
  Fetching far;
  const int64_t long_run = larger(smaller(2 * kFarTile / larger(p.rows, 1), kLongRun), cols_side);
  int64_t fetched = long_run;
  for (int64_t c0 = 0; c0 < p.cols;) {
    const int64_t c1 = tile_end(c0, p.cols, cols_side, cols_shift), cols = c1 - c0;
    if (whole && c1 + long_run > fetched && fetched < p.cols) {
      far = {p.src + fetched, p.src_ld, smaller(p.cols - fetched, long_run) + kLine - 1, p.rows};
      fetched += long_run;
    }
    for (int64_t r0 = 0; r0 < p.rows;) {
      const int64_t r1 = whole ? p.rows : tile_end(r0, p.rows, rows_side, rows_shift), rows = r1 - r0;
      const float* src = p.src + r0 * p.src_ld + c0;
      const float* next = r1 < p.rows ? p.src + r1 * p.src_ld + c0 : c1 < p.cols ? p.src + c1 : src;
      turn_tile(src, p.src_ld, work, pitch, rows, cols, whole ? nullptr : next, far, before);
      before.rest();
      float* dst = p.dst + c0 * p.dst_ld + r0;
      before = {work, dst, pitch, p.dst_ld, whole ? rows * cols : rows, whole ? 0 : cols, whole};
      work = work == p.work ? p.work + LayoutUkernel::kWork / 2 : p.work;
      r0 = r1;
    }
    c0 = c1;
  }
  before.rest();
}

// Stores to such rows evict each other a little further on too; of loads nothing was gained there.
inline bool pages_apart(int64_t ld) {
  return ld >= kPage - kLine && (ld + kLine) % kPage <= 2 * kLine;
}

void turn_straight(const LayoutPart& p) {
  if (p.ahead) return turn_from_memory<false>(p);
  if (pages_apart(p.dst_ld) && p.cols >= 4) return turn_to_four(p);
  if (p.src_ld % kPage == 0 && p.rows >= 4) return turn_from_four(p);
  turn_blocks(p, smaller(p.rows, p.cols) <= kNarrow ? kChunk : kLine);
}

void turn(const LayoutPart* part) {
  const LayoutPart& p = *part;
  const bool small = p.rows < kL || p.cols < kL;
  if (p.streaming) {
    const bool lines = p.dst_ld % kLine == 0 && p.rows % kL == 0 && to_line(p.dst) == 0;
    lines && !small ? turn_from_memory<true>(p) : turn_tiles(p);
    return simd::stream_end();
  }
  if (is_few(p.rows, p.cols, p.src_ld, p.dst_ld)) return turn_few(p.src, p.src_ld, p.dst, p.dst_ld, p.rows, p.cols);
  if (small) return turn_small(p);
  turn_straight(p);
}

}  // namespace
}  // namespace fastconv
