// The place of the largest of N logits, the first of equals, and where it goes: token[0], and
// written[count[0]], after which count[0] is one more. One block of 1024 threads.
//
// Macros: BF16, X_PLANES. tokens: of `written`; nothing is written behind them.
#include "one_row.cuh"

struct Best {
  float value;
  int at;
};

__device__ __forceinline__ void take(Best& best, float value, int at) {
  if (value > best.value || (value == best.value && at < best.at)) best = {value, at};
}

extern "C" __global__ void __launch_bounds__(1024)
largest(const unsigned short* logits, long long* token, long long* written, long long* count, int N,
        int tokens) {
  __shared__ float values[32];
  __shared__ int places[32];
  let_next_kernel_start();
  wait_for_previous_kernels();
  Best best = {__uint_as_float(0xFF800000u), 0};  // minus infinity
  const int thread = threadIdx.x, whole = N / 8 * 8;
#pragma unroll 4
  for (int i = thread * 8; i < whole; i += 1024 * 8) {
    float eight[8];
    load_eight(eight, logits + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) take(best, eight[j], i + j);
  }
  if (whole + thread < N) take(best, activation_to_float(logits[whole + thread]), whole + thread);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const float value = __shfl_xor_sync(~0u, best.value, mask);
    take(best, value, __shfl_xor_sync(~0u, best.at, mask));
  }
  if (thread % 32 == 0) {
    values[thread / 32] = best.value;
    places[thread / 32] = best.at;
  }
  __syncthreads();
  if (thread != 0) return;
  for (int w = 1; w < 32; ++w) take(best, values[w], places[w]);
  token[0] = best.at;
  if (count[0] < tokens) written[count[0]] = best.at;
  count[0] += 1;
}
