// x (rows, K) -> 16-bit integers in blocks of 128 inputs, as pairs of bytes, for byte_rows.cu.
//
//   x_i ~ scale q_i,   scale = max |x| / 16256 over the block,   q_i or 2 q_i = 256 high_i + low_i
//
// with both bytes signed; q_i is rounded to nearest, ties to even. It is doubled in the even ones
// of the eight steps of 16 inputs of a block, whose weights count half as much (byte_rows.cu).
//
// Macro: BF16 (0: x is float16).
//
// bytes [4 rows][chunk of 256][block][2][32 lanes] uint4: what lane 4 g + t gives to four products
//   of 32 inputs each, of which the first two are in the first uint4: the inputs 4 t .. 4 t + 3 and
//   16 + 4 t .. of column g. Columns 2 r and 2 r + 1 are the high and low bytes of row r.
// blocks: see blocks.cuh; the scale is divided by 128, which the bits of the weights count.
//
// A warp has a block of a row, a lane four inputs in sequence. Inputs from K on are zero, and rows
// from M on.
#include "blocks.cuh"

constexpr int LARGEST = 16256;  // twice it has a high byte of 127

extern "C" __global__ void __launch_bounds__(256)
bytes(const unsigned short* x, unsigned* x_bytes, float* blocks, int K, int M) {
  let_next_kernel_start();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int half = warp & 1, row_of_four = warp >> 1;
  const int chunk = blockIdx.x, chunks = gridDim.x, four = blockIdx.y;
  const int row = 4 * four + row_of_four;
  wait_for_previous_kernels();

  float values[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int input = chunk * 256 + half * 128 + 4 * lane + j;
    const bool inside = row < M && input < K;
    values[j] = inside ? activation_to_float(x[static_cast<size_t>(row) * K + input]) : 0.0f;
  }
  const float maximum = largest_magnitude(values);
  const float inverse = LARGEST / maximum;

  // Lane 8 n + 4 h + t has the inputs 16 h + 4 t .. of product n: step 2 n + h.
  const int product = lane >> 3, h = lane >> 2 & 1, t = lane & 3;
  int sum = 0;
  unsigned high = 0, low = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int q = __float2int_rn(values[j] * inverse);
    sum += q;
    const int doubled = h == 0 ? 2 * q : q;
    low |= (doubled & 0xFFu) << 8 * j;
    high |= ((doubled + 128) >> 8 & 0xFFu) << 8 * j;  // the low byte is signed
  }
  const size_t block = (static_cast<size_t>(four) * chunks + chunk) * 2 + half;
  unsigned* own = x_bytes + ((block * 2 + product / 2) * 32 + 8 * row_of_four + t) * 4;
  own[2 * (product % 2) + h] = high;      // column 2 row_of_four
  own[2 * (product % 2) + h + 16] = low;  // the next column: four lanes of four words on

  // Bits 0 to 2 of the lane number go over a quarter.
  for (int bit : {1, 2, 4}) sum += __shfl_xor_sync(~0u, sum, bit);
  const int sum64 = sum + __shfl_xor_sync(~0u, sum, 8);
  const int sum128 = sum64 + __shfl_xor_sync(~0u, sum64, 16);
  const float scale = maximum / LARGEST;
  float* target = blocks + ((static_cast<size_t>(row) * chunks + chunk) * 2 + half) * 8;
  if (lane == 0) {
    target[0] = scale * (BLOCK_LIFT / 128);
    target[1] = scale * sum128;
  }
  if (lane % 16 == 0) target[2 + lane / 16] = scale * sum64;
  if (lane % 8 == 0) target[4 + lane / 8] = scale * sum;
}
