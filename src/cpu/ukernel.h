// Contracts of the CPU leaves. A leaf serves one ISA, is single-threaded, allocates nothing and checks nothing.
// This header is included by ISA-suffixed files, so it holds plain data only: no inline function, no library container
// (the linker could otherwise keep an AVX-512 copy of a shared inline function for baseline code).
#pragma once

#include <stdint.h>

namespace fastconv {

// ISA levels as plain numbers, equal to fastconv::Isa.
enum { kIsaScalar = 0, kIsaAvx2 = 1, kIsaAvx512 = 2, kIsaAmx = 3 };

// --- GEMM -------------------------------------------------------------------------------------------------------------
// One panel: c[p][j] = act(bias[j] + residual[p][j] + sum_k a[p][k] * b[k][j]), all pixels p, the panel's nr columns.
//
// Pixels form `outer` rows of `inner` each. The value that pixel (o, i) contributes at step k of segment s lies at
//     a[o * a_outer + i * a_row + a_seg[s] + k * a_k],   0 <= s < segs, 0 <= k < seg_k,
// which covers a plain matrix (segs = 1), an image read in place (a segment a tap) and im2col panels of either order.
// b is packed [segs * seg_k][nr], zero-padded columns; with b_seg segment s begins at b + b_seg[s]. Of c one stride is 1: c_col == 1 stores rows of channels (NHWC),
// c_row == 1 and c_outer == inner stores the tile transposed, rows of pixels (NCHW). The reduction is walked in the order of b.
struct GemmFetch {
  // Asked for towards the L2: at, at + step, at + 2 * step, ..., one a step of the reduction; by `sums` what lies half a step on as well.
  const float* at;
  int64_t step;
};

struct GemmPanel {
  const float* a;
  int64_t a_outer, a_row, a_k;
  const int64_t* a_seg;  // segs offsets, elements
  int64_t segs, seg_k;
  const float* b;
  const int64_t* b_seg;  // segs offsets, elements; or null: segments adjoin
  // Operands that are copied by whoever is first to read them. Only with segs == 1; or null.
  // Rows of b, n values each, b_from_k apart at b_from: the first register tile copies them to b_copy == b, zeros past n. Only with c_col == 1.
  const float* b_from;
  float* b_copy;
  int64_t b_from_k;
  // Pixel (o, i) at step k at a_from + o * a_from_outer + i * a_from_row + k * a_from_k, a_from_row 1 or 2: each register tile copies its pixels to
  // a_copy == a. Needs a_tile; only with c_row == 1.
  const float* a_from;
  float* a_copy;
  int64_t a_from_outer, a_from_row, a_from_k;
  int64_t
      a_tile;  // or 0: register tiles lie so far apart, each as [k][pixel], steps a_k apart; a_outer and a_row are not used
  float* c;
  int64_t c_outer, c_row, c_col;
  const float* residual;  // strides of c; or null
  const float* bias;      // n values; or null
  const float*
      row_bias;    // one value a pixel, where pixels are the rows of another matrix; or null. Only with c_col == 1
  float* partial;  // [outer * inner][nr]: sums between parts of K; unused when first && last
  int64_t outer, inner;
  const GemmFetch* fetch;  // what is wanted soon: one entry a register tile, as far as they go
  int64_t fetches;
  int64_t n;            // columns in use, 1..nr
  int32_t first, last;  // first and last part of K
  int32_t relu;
  int32_t expect;  // each register tile asks for its part of c and of the residual before its products
};

struct GemmUkernel {
  const char* name;
  int32_t isa;  // fastconv::Isa
  int32_t mr, nr;
  void (*panel)(const GemmPanel*);
  // One pixel (outer == inner == 1, c_col == 1, first && last, no row_bias, nothing to fetch) against several panels, which adjoin in b and
  // c; n counts the columns in use of all of them. The same bits as panel by panel.
  void (*pixel)(const GemmPanel*);
  // The sums alone, of one row of pixels (outer == 1, a_k == 1, c_col == 1, first && last): nothing to add, to clamp or to copy, and all
  // nr columns are stored, whatever n.
  void (*sums)(const GemmPanel*);
};

// --- data movement ----------------------------------------------------------------------------------------------------
struct MoveUkernel {
  const char* name;
  int32_t isa;
  // dst[j * dst_ld + i] = src[i * src_ld + j] for i < rows, j < cols.
  void (*transpose)(const float* src, int64_t src_ld, float* dst, int64_t dst_ld, int64_t rows, int64_t cols);
  // dst[i * dst_ld + j] = lo <= j < hi ? src[i * src_ld + (j - lo) * step] : 0, i < rows, 0 <= j < cols, step >= 1.
  void (*gather_rows)(const float* src, int64_t src_ld, int64_t step, float* dst, int64_t dst_ld, int64_t rows,
                      int64_t cols, int64_t lo, int64_t hi);
};

// --- Winograd convolution -----------------------------------------------------------------------------------------
// F(o x o, 3 x 3) with stride 1 or 2: an output tile of o x o pixels from t x t input pixels. Stride 1: t = o + 2, t * t
// products a channel pair. Stride 2: t = 2 o + 1, t * t products, whose sums over the channels are added up to p * p values,
// p = o + 1 (p = t with stride 1); which to which: WinogradTile (winograd_tile.h).
// Tile (y, x) covers output rows y*o .. y*o + o - 1 and reads t input rows from y*o*stride - pt on; columns likewise.
// Tiles of row whole_rows or column whole_columns are ragged: those have o / 2 outputs or fewer in that direction, and of the values and
// products some (Rest, winograd_body.h). No such row or column where nothing is gained.
// A part is a rectangle of tiles of one image, row by row by their kind: v[0] or m[0] those that are ragged in their columns alone,
// [1] whole ones, [2] ragged in their rows alone, [3] in both.
// Input: v[position][tile][channel] = (B' d B)[position], d zero outside the image. The rows of v are whole vectors:
// channels are rounded up to `lanes`, and what lies past them is written too.
struct WinogradInput {
  const float* src;  // the image
  float* v[4];       // first tile of each kind, channel `channel`
  int64_t v_position, v_tile;
  int64_t ic, ih, iw, pt, pl;
  int64_t y_end, x_end;  // rows and columns from here on count as outside: no output reads them
  int64_t channel, channels;
  int64_t row, rows, column, columns;
  int64_t whole_rows, whole_columns;
};

// Output: dst[tile] = act((A' m A) + bias + residual), where it lies in the image. m[tile][position][nr].
struct WinogradOutput {
  const float* m[4];  // first tile of each kind, channel `channel`
  int64_t m_tile;
  float* dst;             // the image
  const float* residual;  // or null
  const float* bias;      // channel 0; or null
  int64_t oc, oh, ow;
  int64_t channel, channels;
  int64_t row, rows, column, columns;
  int64_t whole_rows, whole_columns;
  int32_t relu;
};

struct WinogradUkernel {
  const char* name;
  int32_t isa;
  int32_t nr;  // values of a position of m, known to the transforms: what a GEMM leaf of the ISA makes
  struct Transforms {
    void (*input_pixels)(const WinogradInput*);    // src [y][x][c]
    void (*input_planes)(const WinogradInput*);    // src [c][y][x]
    void (*output_pixels)(const WinogradOutput*);  // dst [y][x][c]
    void (*output_planes)(const WinogradOutput*);  // dst [c][y][x]
    // u[u_at[row * (o + 2) + column] + j] = (G g G')[row][column] of the kernel g[tap * g_tap + j], tap = 3 r + s,
    // j < count; in float64, rounded once. count is a multiple of 8.
    void (*weights)(const float* g, int64_t g_tap, float* u, const int64_t* u_at, int64_t count);
  } f23, f43, f23_stride2, f43_stride2;
};

// --- Winograd convolution of phases -----------------------------------------------------------------------------------
// F(4 x 4, 4 x 4) over the four phases of an image: 7x7 and 8x8 kernels with stride 2. Cell (y, x) holds the 2 x 2 pixels from (2y - pt, 2x - pl)
// on, value (2b + d) * ic + c that of row b, column d, channel c; a tile is 7 x 7 cells and makes 4 x 4 outputs.
enum { kPhasesSide = 7, kPhasesRun = 16 };  // a side of V and of U; the values of v that lie together

// cells[x][value] of one row of cells, x < count, zeros outside the image and past the 4 ic values.
struct PhasesCells {
  const float* row[2];  // the two image rows, pixel 0; null: outside
  int64_t ic, columns;  // image columns from `columns` on count as outside: no output reads them
  int64_t first;        // image column of the first cell's first pixel, may be negative
  float* cells;
  int64_t cell, count;  // from cell to cell, a multiple of kPhasesRun; cells
};

// v[i][run][tile][j][16] = (B' d B)[i][j] of `tiles` tiles side by side, values in runs of 16.
struct PhasesInput {
  const float* row[kPhasesSide];  // rows of cells, first cell of the first tile
  int64_t cell;
  const float *last_row,
      *last_column;  // a float a value: 0 where the last row or column of a tile has a tap of no kernel
  float* v;
  int64_t v_row, v_run;  // from i to i, from run to run
  int64_t tiles;
};

// Products of `out.columns` tiles side by side with one panel, and their output transform.
struct PhasesOutput {
  const float* v;
  int64_t v_row, v_run, values;  // values: 4 ic
  const float* u;                // [i][value][j][nr]
  float* sums;                   // private: [i][tile of a group][4][nr]
  WinogradOutput out;            // where to; m is not used
  int32_t expect;                // the lines of the results are asked for during the products
};

struct PhasesUkernel {
  const char* name;
  int32_t isa;
  int32_t nr;
  int32_t tiles;  // tiles of a register tile
  int32_t group;  // tiles that pass through `sums` together
  void (*cells)(const PhasesCells*);
  void (*input)(const PhasesInput*);
  void (*output_pixels)(const PhasesOutput*);
  void (*output_planes)(const PhasesOutput*);
};

// --- Strassen's products ------------------------------------------------------------------------------------------
// c = a b with both matrices in quarters: 7 products of quarters, not 8 (Winograd's form). The rows of a are pixels in pairs, even
// over odd; its columns and the rows of b are the halves of the k products; the columns of b are the halves of the channels.
// Number and operands of the products, in the order in which they are made:
//     0  A11 B11                  1  A12 B21                  2  (A21 + A22 - A11) (B22 - B12 + B11)
//     3  (A11 - A21) (B22 - B12)  4  A22 (B21 - B22 + B12 - B11)
//     5  (A21 + A22) (B12 - B11)  6  (A12 - A21 - A22 + A11) B22
enum { kStrassenProducts = 7 };

// a[product][pair][k], k < half, of `pairs` pairs of pixels that lie src_pair apart, even and odd src_odd apart.
struct StrassenInput {
  const float* src;  // first pair, first channel; 2 * half channels
  int64_t src_pair, src_odd, half;
  float* a;
  int64_t a_product, a_pair;
  int64_t pairs;
};

// One panel: dst[pixel][channel] = act(bias + residual + sum) of all pairs, nr channels of either half.
struct StrassenPanel {
  const float* a;
  int64_t a_product, a_pair, half;
  // Planes: a in register tiles a_tile apart, each [product][half][mr]; a_product and a_pair are not used. Or 0.
  int64_t a_tile;
  // With a_tile: each tile makes its a, a_made == a, of pixels of planes a_from_k apart. The pair (o, i) begins at a_from + o * a_from_outer +
  // i * a_from_pair in the plane of channel 0, its odd pixel a_from_odd further on; a_from_pair is 1 or 2. Or null.
  const float* a_from;
  float* a_made;
  int64_t a_from_k, a_from_outer, a_from_pair, a_from_odd;
  const float* b;  // [product][half][nr], zero-padded columns
  float* dst;      // first pair, first channel of the left half
  int64_t dst_pair, dst_odd, dst_right;
  int64_t dst_outer, dst_column;  // with a_tile: from row to row of pairs; from channel to channel, dst_pair is 1
  const float* residual;          // strides of dst; or null
  const float* bias;              // channel of dst; the right half's bias_right further on; or null
  int64_t bias_right, bias_odd;
  int64_t outer, inner;  // pairs; without a_tile one row
  // panel_planes, where pairs are of output channels and columns are pixels, dst_right apart: register tiles first .. last - 1 of them, and
  // what the first makes b_made == b of, where it is asked to: b_from is the first pixel in the plane of channel 0.
  int64_t first, last;
  const float* b_from;  // or null
  float* b_made;
  int64_t b_from_k, b_right, b_lower;
  int64_t n;  // columns in use of either half, 1..nr
  const GemmFetch*
      fetch;  // one entry a register tile, 7 * half steps long, as far as they go; panel_planes: one a product, half steps
  int64_t fetches;
  int32_t relu;
  int32_t expect;  // each register tile asks for its part of dst and of the residual during the products before
};

struct StrassenUkernel {
  const char* name;
  int32_t isa;
  int32_t mr, nr;  // register tile: pairs x channels of either half
  void (*input)(const StrassenInput*);
  void (*panel)(const StrassenPanel*);
  void (*panel_planes)(const StrassenPanel*);
  // b[product * b_product + j] of the weights w[k half][channel half] in quarters, j < count, in float64, rounded once.
  // count is a multiple of 8.
  void (*weights)(const float* const w[4], float* b, int64_t b_product, int64_t count);
  // The same of a, w[channel half][k half].
  void (*weights_left)(const float* const w[4], float* a, int64_t a_product, int64_t count);
};

// --- Winograd's inner product -----------------------------------------------------------------------------------------
// c = a b with a multiplication for two products:  a1 b1 + a2 b2 = (a1 + b2) (a2 + b1) - a1 a2 - b1 b2. What is subtracted is a sum a row of a and
// one a column of b. Where a core adds beside its multipliers (Machine::adds_beside), two products of three are made so and the third as usual:
// as many multiplications as additions, two for three.
// The reduction is walked in steps of three, runs 0, 1 and 2: a1 b1 and a2 b2 are those of runs 0 and 1. Channels in blocks of 48, run r of block g
// its channels 16 r .. 16 r + 15; what is left past whole blocks has steps of a third, rounded up, each run its part of them.
// Rows of a and columns of b are scaled by powers of two to a root mean square of about 1; else the sums would lose what is small beside what is
// large. a2 and b2 are negated in odd steps, so that what is subtracted grows like a random sum, not like a sum of squares.
enum { kFipRun = 16, kFipRuns = 3, kFipBlock = kFipRun * kFipRuns, kFipHead = 32 };
// a: rows a_row apart, each in its blocks [run][16], and what is added to their sums before and their scales apart; or register tiles of mr
// rows, a_tile apart: [16] what is added before, [16] scales, [step][run][mr].
// b: panels: [nr] what is added to a column's sums, [nr] its scale, [step][run][nr], zero-padded columns.
struct FipPixels {  // rows of a, of k values each; in place where a == src and the rows lie alike
  const float* src;
  int64_t src_row, rows, k;
  float* a;
  int64_t a_row;
  const int64_t* places;  // or null: row i lies places[i] behind src and a, whatever src_row and a_row
  float *heads, *scales;
  int32_t together;  // all rows have one scale, by their common root mean square; written once
};
struct FipPlanes {  // a register tile, or a panel: `rows` values next to each other, in planes
  const float* src;
  int64_t src_plane, rows, k;
  float* out;
};

// One panel: c[row][column] = act(scales (sums) + bias + residual).
struct FipPanel {
  const float *a, *b;  // b: [step][run][nr]; what precedes that of a panel is at `columns`
  const float* columns;
  // sums: so many products are added up, of the same scales, a_seg and b_seg behind a and b; else not used.
  int64_t segs;
  const int64_t *a_seg, *b_seg;
  int64_t a_row;                // rows, sums
  const float *heads, *scales;  // of the rows, likewise
  int64_t a_tile;               // turned, planes
  int64_t steps;
  float* c;
  int64_t c_row, c_col;   // one of them is 1: c_row by `turned`, else c_col
  const float* residual;  // strides of c; or null
  const float* bias;      // a value a column, of `planes` a row; or null
  int64_t count;          // of rows, cut into register tiles of nearly equal height
  int64_t first, last;    // of these, the ones that are wanted
  int64_t n;              // columns in use, 1..nr
  // One entry a wanted tile, as far as they go; of a step 2 lines, evenly apart, by `planes` 1, by `sums` 6.
  const GemmFetch* fetch;
  int64_t fetches;
  int32_t relu;
  int32_t expect;  // each register tile asks for its part of c and of the residual before its products
};

struct FipUkernel {
  const char* name;
  int32_t isa;
  int32_t mr, nr;
  void (*order_rows)(const FipPixels*);   // rows of a, of pixels [k]
  void (*order_tile)(const FipPlanes*);   // a register tile of a, of planes
  void (*order_panel)(const FipPlanes*);  // a panel of b, of planes
  void (*rows)(const FipPanel*);          // c in rows of columns
  void (*turned)(const FipPanel*);        // register tiles, c with rows last
  void (*planes)(const FipPanel*);        // register tiles, a bias a row
  void (*sums)(const FipPanel*);          // scales (sums) and nothing else, all nr columns, whatever n
};

// --- depthwise convolution ----------------------------------------------------------------------------------------
// One part: for output channels channel .. channel + channels - 1 and output rows row .. row + rows - 1 of one image,
//     dst[c, y, x] = act(bias[c] + sum_{r,s} src[c / multiplier, y*sh - pt + r*dh, x*sw - pl + s*dw] * w[c, r, s]
//                        + residual[c, y, x]).
// src, residual, dst point at the image, w and bias at channel 0. Taps outside the image are skipped or meet a zero.
// along_row: planes of src lie src_plane elements apart, those of dst and residual dst_plane.
struct DepthwisePart {
  const float* src;
  const float* w;
  const float* bias;      // or null
  const float* residual;  // or null
  float* dst;
  int64_t ic, ih, iw, oc, oh, ow;
  int64_t src_plane, dst_plane;
  int64_t kh, kw, sh, sw, dh, dw, pt, pl;
  int64_t multiplier;  // oc == ic * multiplier
  int64_t channel, channels, row, rows;
  int32_t relu;
};

struct DepthwiseUkernel {
  const char* name;
  int32_t isa;           // fastconv::Isa
  int32_t lanes;         // channels of one packed weight block of along_channels
  int32_t pixels, rows;  // tiles: pixels x lanes channels along channels, rows x lanes pixels along rows
  // Planes [c][y][x], w [oc][kh * kw]. Vectors run along a row.
  void (*along_row)(const DepthwisePart*);
  // Pixels [y][x][c], w [oc / lanes rounded up][kh * kw][lanes], zero-padded; `channel` is a multiple of lanes.
  // Vectors run over channels.
  void (*along_channels)(const DepthwisePart*);
};

// --- pooling ------------------------------------------------------------------------------------------------------
// Windows over images [ih][iw][c]; a plane of NCHW is such an image with c = 1. Output row y and column x see rows
// y*sh - pt + r*dh, r < kh, and columns x*sw - pl + s*dw, s < kw, as far as these lie inside the image.
struct PoolCall {
  int64_t images, src_image, dst_image;  // so many, which lie so far apart
  const float* src;
  float* dst;        // [oh][ow][c]
  int64_t* indices;  // [oh][ow][c]: row * iw + column of the chosen element; -1 where a window holds no element
  float* work;       // work_floats of private memory: max_indices uses two halves, the others all of it as one
  int64_t work_floats;
  int64_t c, ih, iw, oh, ow;
  int64_t kh, kw, sh, sw, dh, dw, pt, pb, pl, pr;
  int64_t divisor;             // average: divisor_override, or 0
  int64_t strip;               // output columns that are computed together; their input columns fit the work memory
  int64_t row_begin, row_end;  // output rows to compute
  int32_t count_include_pad;
  int32_t streaming;  // stores go past the caches, where dst and its rows allow that
  int32_t far;        // the images come from memory: what the next rows read is fetched towards the L2 meanwhile
  int32_t near;  // what comes soon in rows that are read is fetched: planes with stride 2, pixels in windows of 2x2
};

struct PoolUkernel {
  const char* name;
  int32_t isa;
  void (*max)(const PoolCall*);  // NaN sticks; padding is -inf
  void (*max_indices)(
      const PoolCall*);               // the same with indices: the first maximum, and the first NaN, in row-major order
  void (*average)(const PoolCall*);   // dh = dw = 1
  void (*adaptive)(const PoolCall*);  // window of row y: floor(y*ih/oh) .. ceil((y+1)*ih/oh); k, s, d, p unused
  // dst[i] = sum of src[i*len .. i*len + len - 1] / divisor, i < rows.
  void (*mean_rows)(const float* src, float* dst, int64_t rows, int64_t len, double divisor);
  // dst[j] = sum over i < rows of src[i*ld + j] / divisor, j < n.
  void (*mean_columns)(const float* src, int64_t ld, float* dst, int64_t rows, int64_t n, double divisor);
};

// --- element by element -------------------------------------------------------------------------------------------
// dst may equal src exactly.
struct EltwiseUkernel {
  const char* name;
  int32_t isa;
  void (*relu)(const float* src, float* dst, int64_t count,
               int32_t streaming);  // NaN stays. streaming: past the caches
  // dst[i*len + j] = src[i*len + j] * scale[i] + shift[i], i < rows, j < len.
  void (*affine_rows)(const float* src, float* dst, const float* scale, const float* shift, int64_t rows, int64_t len);
  // dst[i*len + j] = src[i*len + j] * scale[j] + shift[j].
  void (*affine_columns)(const float* src, float* dst, const float* scale, const float* shift, int64_t rows,
                         int64_t len);
};

// --- layout conversion ------------------------------------------------------------------------------------------------
// dst[j * dst_ld + i] = src[i * src_ld + j], i < rows, j < cols: planes to pixels where rows are channels, pixels to planes where
// columns are.
struct LayoutPart {
  const float* src;
  float* dst;
  int64_t src_ld, dst_ld;
  int64_t rows, cols;
  float* work;        // LayoutUkernel::kWork floats of private memory
  int32_t streaming;  // stores go past the caches
  int32_t ahead;      // src is not in the caches
};

struct LayoutUkernel {
  static constexpr int64_t kWork = 16384;
  static constexpr int64_t kLine = 16, kRun = 256;  // floats of a cache line; rows up to kRun leave several as one run
  const char* name;
  int32_t isa;
  void (*turn)(const LayoutPart*);
};

// --- softmax ----------------------------------------------------------------------------------------------------------
struct SoftmaxUkernel {
  const char* name;
  int32_t isa;
  // Every row of len adjacent values by itself.
  void (*rows)(const float* src, float* dst, int64_t rows, int64_t len);
  // Every column by itself: element a of column j lies at a*ld + j, a < len, j < n. work: 3*n floats.
  void (*columns)(const float* src, float* dst, int64_t len, int64_t ld, int64_t n, float* work);
};

// --- measurement ------------------------------------------------------------------------------------------------------
struct PeakUkernel {
  const char* name;
  int32_t isa;
  int64_t flops_per_round;
  float (*fma_loop)(int64_t rounds);               // registers only
  float (*read)(const float* src, int64_t count);  // count a multiple of 256
  // Reads and writes so many values, evenly mixed; a copy where both numbers are equal. streaming: past the caches.
  void (*move)(const float* src, int64_t reads, float* dst, int64_t writes, int32_t streaming);
};

}  // namespace fastconv
