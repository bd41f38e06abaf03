// Hopper's asynchronous instructions (sm_90a): barriers in shared memory, bulk copies, wgmma.
// PTX ISA: sections "mbarrier", "cp.async.bulk", "wgmma.mma_async", "setmaxnreg".
#pragma once

typedef unsigned u32;
typedef unsigned short u16;
typedef unsigned long long u64;

// ---- half precision, alone and in pairs, whose first is in the low half of a word

__device__ __forceinline__ float half_to_float(u16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
}

template <bool BFLOAT>
__device__ __forceinline__ u16 narrowed(float v) {
  u16 h;
  if (BFLOAT)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
  else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}

__device__ __forceinline__ u32 half_pair(float low, float high) {
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ u32 add2(u32 a, u32 b) {
  u32 sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

__device__ __forceinline__ u32 multiply2(u32 a, u32 b) {
  u32 product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// ---- shared memory by its address

__device__ __forceinline__ u32 shared_memory() {
  extern __shared__ char memory[];
  return (u32)__cvta_generic_to_shared(memory);
}

__device__ __forceinline__ u32 shared_word(u32 address) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ void shared_pair(u32& low, u32& high, u32 address) {
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(low), "=r"(high) : "r"(address));
}

__device__ __forceinline__ void store_shared(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}

// Of the block's first COUNT threads.
template <int COUNT>
__device__ __forceinline__ void threads_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(COUNT) : "memory");
}

// ---- clusters: blocks that start together and see each other's shared memory

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address, in block `rank` of the cluster, of what lies at `address` in this one.
__device__ __forceinline__ u32 peer_address(u32 address, u32 rank) {
  u32 peer;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
  return peer;
}

__device__ __forceinline__ float4 load_peer(u32 address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
  return v;
}

// ---- barriers: a phase ends when all arrivals and all announced bytes have come

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Arrives at the barrier of block `rank` (cluster address).
__device__ __forceinline__ void barrier_arrive_peer(u32 barrier, u32 rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];"
               ::"r"(peer_address(barrier, rank)) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits for the end of the phase whose parity is given.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  u32 done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        " selp.u32 %0, 1, 0, p; }"
        : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  }
}

// ---- bulk copies from global to shared memory: 16-byte aligned, complete on a barrier

__device__ __forceinline__ void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// The same into all blocks of `mask`, each at its own `to`, completing on its own `barrier`.
__device__ __forceinline__ void copy_multicast(u32 to, const void* from, u32 bytes, u32 barrier,
                                               unsigned short mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1], %2, [%3], %4;"
      ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(mask) : "memory");
}

// ---- programmatic dependent launch

__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void start_next_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- registers move from the warps that copy to the warps that compute

template <int COUNT>
__device__ __forceinline__ void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- wgmma: D (64 x ROWS, float32, registers) += A (64 x 16, half, registers) * B (shared)

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most PENDING committed groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Descriptor of B at `address`, a multiple of 1024: rows of 128 bytes (64 halves along k), 8 rows
// of them to a swizzle pattern of 1024 bytes, in which the 16-byte piece i of row r lies at place
// i ^ (r & 7). Bits 0-13: address / 16; 16-29: unused with a swizzle; 32-45: bytes from one 8 rows
// to the next / 16; 62-63: 1 = 128-byte swizzle. A step of 16 along k adds 32 bytes to the address.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
  return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#define D0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" "," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D1 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" "," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define D2 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" "," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define D3 "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" "," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define F8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
  "+f"(d[i + 6]), "+f"(d[i + 7])
#define F32(i) F8(i), F8(i + 8), F8(i + 16), F8(i + 24)
#define WGMMA(SHAPE, D, AB, ...)                                                      \
  asm volatile("wgmma.mma_async.sync.aligned." SHAPE ".f32.f16.f16 {" D "}," AB ",1,1,1,0;" \
               : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// A: rows 16 w + g and + 8 of warp w in a[0], a[1] for k = 2t, 2t + 1, in a[2], a[3] for 8 more.
// D: d[4 j + i] is row 16 w + g + 8 (i >> 1), column 8 j + 2 t + (i & 1). (lane = 4 g + t)
template <int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], const u32 (&a)[4], u64 b) {
  if constexpr (COUNT == 32)
    WGMMA("m64n64k16", D0, "{%32,%33,%34,%35},%36", F32(0));
  else if constexpr (COUNT == 64)
    WGMMA("m64n128k16", D0 "," D1, "{%64,%65,%66,%67},%68", F32(0), F32(32));
  else if constexpr (COUNT == 96)
    WGMMA("m64n192k16", D0 "," D1 "," D2, "{%96,%97,%98,%99},%100", F32(0), F32(32), F32(64));
  else
    WGMMA("m64n256k16", D0 "," D1 "," D2 "," D3, "{%128,%129,%130,%131},%132", F32(0), F32(32),
          F32(64), F32(96));
}
