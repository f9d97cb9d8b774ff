// How a batch of tiles is cut into rectangles and sorted by kind (winograd.cpp): W is a Winograd<O, S, Fip>.
#pragma once

#include <algorithm>

#include "common/algorithm.h"

namespace fastconv {
namespace {

// Cuts tiles first..first+count of the batch into rectangles of one image each: fn(image, row, rows, column, columns).
template <class W, class Fn>
void for_each_rectangle(const W& w, int64_t first, int64_t count, const Fn& fn) {
  for (int64_t done = 0; done < count;) {
    const int64_t at = first + done, image = at / w.tiles(), row = at % w.tiles() / w.columns, column = at % w.columns;
    const int64_t left = count - done;
    int64_t rows = 1, columns = std::min(w.columns - column, left);
    if (columns == w.columns) rows = std::min(left / columns, w.rows - row);
    fn(image, row, rows, column, columns);
    done += rows * columns;
  }
}

// How many tiles of each kind (WinogradInput) there are; in this order those of a group lie in V and M, so that each product is of
// one run of them.
struct Kinds {
  int64_t whole = 0, rows = 0, columns = 0, both = 0;  // ragged in those
  template <class W>
  void add(const W& w, int64_t row, int64_t high, int64_t column, int64_t wide) {
    const int64_t whole_high = std::clamp<int64_t>(w.whole_rows - row, 0, high), rest_high = high - whole_high;
    const int64_t whole_wide = std::clamp<int64_t>(w.whole_columns - column, 0, wide), rest_wide = wide - whole_wide;
    whole += whole_high * whole_wide, rows += rest_high * whole_wide;
    columns += whole_high * rest_wide, both += rest_high * rest_wide;
  }
  template <class Sum>
  Range having(const Sum& sum) const {
    return {sum.rest_column ? 0 : columns, columns + whole + (sum.rest_row ? rows + (sum.rest_column ? both : 0) : 0)};
  }
};

template <class W>
Kinds kinds_of(const W& w, int64_t first, int64_t count) {
  Kinds all;
  for_each_rectangle(w, first, count, [&](int64_t, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    all.add(w, row, rows, column, columns);
  });
  return all;
}

// for_each_rectangle, with the numbers of the rectangle's first tile of each kind: fn(image, numbers, row, ..).
template <class W, class Fn>
void for_each_part(const W& w, int64_t first, int64_t count, const Fn& fn) {
  const Kinds all = kinds_of(w, first, count);
  Kinds before;
  for_each_rectangle(w, first, count, [&](int64_t image, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const int64_t numbers[4] = {before.columns, all.columns + before.whole, all.columns + all.whole + before.rows,
                                all.columns + all.whole + all.rows + before.both};
    fn(image, numbers, row, rows, column, columns);
    before.add(w, row, rows, column, columns);
  });
}

}  // namespace
}  // namespace fastconv
