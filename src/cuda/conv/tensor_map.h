// What the copy engine of sm_90 has to be told of a tensor. The numbers are a pure function of the problem, tested without a GPU; the
// driver makes an opaque descriptor of them. Rows of 16-bit values, 64 of them (128 bytes) wide in shared memory, 128-byte swizzle.
// Order of every array: innermost dimension first; corners and element strides of im2col in the order w, h, as CUTLASS passes them
// (cute/atom/copy_traits_sm90_im2col.hpp), whatever the driver's manual calls them.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/algorithm.h"

namespace fastconv::cuda {

// A matrix: `rows` rows of `columns` values, read in boxes of box_rows x 64.
struct TiledMap {
  uint64_t columns = 0, rows = 0, row_bytes = 0;
  uint32_t box_rows = 0;
};

// An NHWC image batch, read as columns of `pixels` output pixels of one tap. A pixel's base moves in steps of `stride` inside the box
// lower .. extent - 1 + upper of each axis, row by row and image by image, and the tap's offset is added to it.
struct Im2colMap {
  uint64_t extent[4] = {};  // c, w, h, n
  uint64_t bytes[3] = {};   // from one w, h, n to the next
  int32_t lower[2] = {};    // w, h
  int32_t upper[2] = {};
  uint32_t stride[4] = {};  // c (1), w, h, n (1)
  uint32_t pixels = 0;
};

// True where src is a matrix already: a 1x1 kernel that reads every pixel.
bool reads_flat(const Problem&);
// Why the copy engine cannot bring this problem's operands, or nullptr.
const char* tensor_map_refuses(const Problem&);

TiledMap flat_source_map(const Problem&, int box_rows);
Im2colMap im2col_source_map(const Problem&, int pixels);
// Weights packed as [oc][kh][kw][ic rounded up to 64].
TiledMap weight_map(const Problem&, int box_rows);

int64_t packed_channels(const Problem&);  // ic rounded up to 64

// Up to 13.1 drivers mark every descriptor as that of a large tensor; small ones must have the mark taken away (as CUTLASS does since
// 4.3, bit 21 of the second word). Reserved, so without effect, on sm_90 itself.
bool clears_large_tensor_mark(int driver_version, uint64_t tensor_bytes);

// Descriptors of the tensors at `address` (a multiple of 16). std::runtime_error where the driver cannot make one.
CUtensorMap encode(const TiledMap&, Dtype, const void* address);
CUtensorMap encode(const Im2colMap&, Dtype, const void* address);

}  // namespace fastconv::cuda
