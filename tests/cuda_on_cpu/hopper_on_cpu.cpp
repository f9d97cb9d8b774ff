// The host's copy engine, barriers and warpgroup products, written from the PTX ISA and not from wgmma_layout.h, so that the two can
// disagree.
#include "hopper_on_cpu.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/conv/tensor_map.h"

namespace fastconv::cuda {
namespace {

struct HostMap {
  bool im2col;
  const unsigned char* address;
  union {
    TiledMap tiled;
    Im2colMap columns;
  };
  HostMap() : im2col(false), address(nullptr), tiled{} {}
};
static_assert(sizeof(HostMap) <= sizeof(CUtensorMap));

CUtensorMap as_opaque(const HostMap& map) {
  CUtensorMap opaque{};
  std::memcpy(&opaque, &map, sizeof map);
  return opaque;
}
HostMap as_host(const CUtensorMap* opaque) {
  HostMap map;
  std::memcpy(static_cast<void*>(&map), opaque, sizeof map);
  return map;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("the driver would refuse this tensor map: ") + what);
}

}  // namespace

CUtensorMap encode(const TiledMap& m, Dtype, const void* address) {
  require(reinterpret_cast<uintptr_t>(address) % 16 == 0, "address not a multiple of 16");
  require(m.columns > 0 && m.columns <= 1ull << 32 && m.rows > 0 && m.rows <= 1ull << 32, "extent");
  require(m.row_bytes % 16 == 0 && m.row_bytes < 1ull << 40, "stride");
  require(m.box_rows > 0 && m.box_rows <= 256, "box");
  HostMap map;
  map.address = static_cast<const unsigned char*>(address);
  map.tiled = m;
  return as_opaque(map);
}

CUtensorMap encode(const Im2colMap& m, Dtype, const void* address) {
  require(reinterpret_cast<uintptr_t>(address) % 16 == 0, "address not a multiple of 16");
  for (const uint64_t extent : m.extent) require(extent > 0 && extent <= 1ull << 32, "extent");
  for (const uint64_t bytes : m.bytes) require(bytes % 16 == 0 && bytes < 1ull << 40, "stride");
  for (int axis = 0; axis < 2; ++axis) {
    require(m.lower[axis] >= -128 && m.lower[axis] <= 127 && m.upper[axis] >= -128 && m.upper[axis] <= 127, "corner");
    require(m.lower[axis] <= static_cast<int64_t>(m.extent[1 + axis]) - 1 + m.upper[axis], "an empty box");
  }
  for (const uint32_t stride : m.stride) require(stride >= 1 && stride <= 8, "element stride");
  require(m.pixels > 0 && m.pixels <= 256, "pixels");
  HostMap map;
  map.im2col = true;
  map.address = static_cast<const unsigned char*>(address);
  map.columns = m;
  return as_opaque(map);
}

namespace hopper {
namespace {

constexpr int kRow = 128;

// The engine and the products put 16-byte unit u of 128-byte row r where unit u ^ (r % 8) would be, rows counted from address 0.
unsigned char* unit(uint32_t address) {
  return static_cast<unsigned char*>(shim::shared_pointer(address ^ ((address >> 7 & 7) << 4), 16, 16));
}

// --- barriers: arrivals awaited a phase and still awaited, bytes still awaited, the phase's parity ---

struct Barrier {
  uint16_t count, pending;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(Barrier) == 8);

Barrier* at(uint32_t barrier) {
  return static_cast<Barrier*>(shim::shared_pointer(barrier, 8, 8));
}

void end_phase_if_due(Barrier* b) {
  if (b->pending != 0 || b->bytes != 0) return;
  b->phase ^= 1;
  b->pending = b->count;
}

// --- copies ---

struct Copy {
  HostMap map;
  uint32_t to, barrier;
  int c, w, h, n, s, r;  // of a matrix: column c, row w
};
std::vector<Copy>& copies() {
  static std::vector<Copy>& list = *new std::vector<Copy>;
  return list;
}

// 64 channels from `from` (null: all outside) of which `count` exist.
void put_row(uint32_t to, const unsigned char* from, int64_t count) {
  for (int64_t i = 0; i < 8; ++i) {
    unsigned char* const place = unit(to + static_cast<uint32_t>(16 * i));
    const int64_t there = from ? std::clamp<int64_t>(count - 8 * i, 0, 8) : 0;
    std::memset(place, 0, 16);
    if (there > 0) std::memcpy(place, from + 16 * i, static_cast<size_t>(2 * there));
  }
}

void perform(const Copy& copy) {
  uint32_t rows = 0;
  if (!copy.map.im2col) {
    const TiledMap& m = copy.map.tiled;
    rows = m.box_rows;
    for (uint32_t i = 0; i < rows; ++i) {
      const int64_t row = int64_t{copy.w} + i;
      const bool inside = row >= 0 && row < static_cast<int64_t>(m.rows) && copy.c >= 0;
      put_row(copy.to + i * kRow,
              inside ? copy.map.address + row * static_cast<int64_t>(m.row_bytes) + 2 * int64_t{copy.c} : nullptr,
              static_cast<int64_t>(m.columns) - copy.c);
    }
  } else {
    const Im2colMap& m = copy.map.columns;
    rows = m.pixels;
    const int64_t columns = static_cast<int64_t>(m.extent[1]), lines = static_cast<int64_t>(m.extent[2]);
    const int64_t last_w = columns - 1 + m.upper[0], last_h = lines - 1 + m.upper[1];
    int64_t w = copy.w, h = copy.h, n = copy.n;
    if (w < m.lower[0] || w > last_w || h < m.lower[1] || h > last_h) shim::fail("im2col starts outside of its box");
    if (copy.s < 0 || copy.s > 255 || copy.r < 0 || copy.r > 255)
      shim::fail("an im2col offset does not fit into 8 bits");
    for (uint32_t i = 0; i < rows; ++i) {
      const int64_t x = w + copy.s, y = h + copy.r;
      const bool inside = n < static_cast<int64_t>(m.extent[3]) && x >= 0 && x < columns && y >= 0 && y < lines;
      const int64_t offset = n * static_cast<int64_t>(m.bytes[2]) + y * static_cast<int64_t>(m.bytes[1]) +
                             x * static_cast<int64_t>(m.bytes[0]) + 2 * int64_t{copy.c};
      put_row(copy.to + i * kRow, inside ? copy.map.address + offset : nullptr,
              static_cast<int64_t>(m.extent[0]) - copy.c);
      w += m.stride[1];
      if (w <= last_w) continue;
      w = m.lower[0];
      h += m.stride[2];
      if (h <= last_h) continue;
      h = m.lower[1];
      ++n;
    }
  }
  Barrier* const b = at(copy.barrier);
  if (b->bytes < static_cast<int32_t>(rows * kRow))
    shim::fail("the copy engine brings more bytes than the barrier awaits");
  b->bytes -= static_cast<int32_t>(rows * kRow);
  end_phase_if_due(b);
}

void issue(uint32_t to, const CUtensorMap* map, bool im2col, const Copy& rest) {
  if (to % 1024 != 0) shim::fail("a tile under the 128-byte swizzle must start at a multiple of 1024 bytes");
  Copy copy = rest;
  copy.map = as_host(map);
  copy.to = to;
  if (copy.map.im2col != im2col) shim::fail("a tensor map of the other mode");
  copies().push_back(copy);
}

// --- products of each thread, by batch ---

struct Product {
  float* d;
  int n;
  uint64_t a, b;
  Half type;
};
struct Products {
  std::vector<Product> open;
  std::vector<std::vector<Product>> batches;
};
Products& mine() {
  static std::map<std::pair<int, unsigned>, Products>& all = *new std::map<std::pair<int, unsigned>, Products>;
  return all[{shim::rank(), threadIdx.x}];
}

// Row `row` of 16 values of the operand a descriptor gives.
void operand_row(float (&v)[16], uint64_t descriptor, int row, Half type) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4,
                 eight_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
    shim::fail("a descriptor of another swizzle or base offset");
  for (int half = 0; half < 2; ++half) {
    const uint32_t address =
        start + static_cast<uint32_t>(row / 8) * eight_rows + static_cast<uint32_t>(row % 8 * kRow + half * 16);
    const unsigned char* bytes = unit(address | static_cast<uint32_t>(shim::rank()) << 24);
    for (int i = 0; i < 8; ++i) {
      unsigned short bits;
      std::memcpy(&bits, bytes + 2 * i, 2);
      v[8 * half + i] =
          type == Half::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
    }
  }
}

// This thread's sums of a 64 x n product: rows 16 * warp + lane / 4 and 8 further, two columns of every eight.
void compute(const Product& p) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
  float low[16], high[16], b[16];
  operand_row(low, p.a, row, p.type);
  operand_row(high, p.a, row + 8, p.type);
  for (int eight = 0; eight < p.n / 8; ++eight)
    for (int e = 0; e < 2; ++e) {
      operand_row(b, p.b, eight * 8 + lane % 4 * 2 + e, p.type);
      float sums[2] = {0, 0};
      for (int k = 0; k < 16; ++k) sums[0] += low[k] * b[k], sums[1] += high[k] * b[k];
      p.d[4 * eight + e] += sums[0];
      p.d[4 * eight + 2 + e] += sums[1];
    }
}

}  // namespace

void barrier_init(uint32_t barrier, uint32_t count) {
  *at(barrier) = Barrier{static_cast<uint16_t>(count), static_cast<uint16_t>(count), 0, 0};
}

void barrier_arrive(uint32_t barrier) {
  barrier_arrive_expecting(barrier, 0);
}

void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) {
  Barrier* const b = at(barrier);
  if (b->pending == 0) shim::fail("more arrivals at a barrier than it counts");
  b->bytes += static_cast<int32_t>(bytes);
  --b->pending;
  end_phase_if_due(b);
}

void barrier_wait(uint32_t barrier, uint32_t parity) {
  shim::wait_until([&] {
    if (at(barrier)->phase != parity) return true;
    if (!copies().empty()) {
      const Copy last = copies().back();
      copies().pop_back();
      perform(last);
    }
    return at(barrier)->phase != parity;
  });
}

void load_tile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
  issue(to, map, false, Copy{{}, 0, barrier, x, y, 0, 0, 0, 0});
}
void load_im2col(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c, int w, int h, int n, int s, int r) {
  issue(to, map, true, Copy{{}, 0, barrier, c, w, h, n, s, r});
}

// These three are `.sync.aligned`: a warp's lanes come together.
void products_begin() {
  __syncwarp();
}
void enqueue_product(float* d, int n, uint64_t a, uint64_t b, Half type) {
  mine().open.push_back({d, n, a, b, type});
}
void products_commit() {
  __syncwarp();
  mine().batches.push_back(std::move(mine().open));
  mine().open.clear();
}
void wait_for_products(int pending) {
  __syncwarp();
  auto& batches = mine().batches;
  while (static_cast<int>(batches.size()) > pending) {
    for (const Product& p : batches.front()) compute(p);
    batches.erase(batches.begin());
  }
}

float4 load_from_block(uint32_t address, int rank) {
  const uint32_t there = (address & 0xFFFFFF) | static_cast<uint32_t>(rank) << 24;
  float4 v;
  std::memcpy(&v, shim::shared_pointer(there, 16, 16), 16);
  return v;
}

}  // namespace hopper
}  // namespace fastconv::cuda
