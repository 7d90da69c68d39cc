/* cuda.h - what a .cu file is written in: CUDA C++ without a library, or, with SD_EMULATE, the same source as host C++
 * whose blocks, threads, shared memory, barriers and shuffles the tests emulate (tests/emulate/emulate.h).
 *
 * Rules that make both work:
 *   - launch with SD_LAUNCH(device, kernel, grid, block, shared_bytes, arguments...); a template with commas in parentheses
 *   - SD_BEGIN() is the first statement of every kernel: from sm_90 on a kernel is launched while the one before it still runs, so
 *     that the 1 us between two is spent beside; it waits there until that one is done and all that it wrote is seen
 *   - shared memory only as SD_SHARED(struct tiles, s): one struct, whose sizeof is the launch's shared_bytes; at most 99 KB,
 *     which is what sm_86, sm_89 and sm_120 give a block (sm_80: 163, sm_90: 227)
 *   - every pointer argument is device memory; arguments are copied by value and replayed
 *   - no atomics, no order that depends on time; sums in a fixed tree
 *   - every thread of a block reaches every __syncthreads(), every lane of a warp every shuffle, mma and ldmatrix
 *   - 16-byte accesses through few<N, T> or vec<T, N> wherever the rows allow it (check the alignment of pitch and pointer:
 *     aligned16); a load that stands in a branch through few<N, T> alone, or it is waited for there */
#ifndef SD_CUDA_H
#define SD_CUDA_H

#ifndef __cplusplus
#error "cuda.h is for .cu files"
#endif

#include <math.h>
#include <stdint.h>

#include "device.h"
#include "op.h"

#ifdef SD_EMULATE
#include "emulate/emulate.h"
#else
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* Waits for the kernel before this one, which had done the same: so for all before.  Then lets the next one be launched. */
#if __CUDA_ARCH__ >= 900
#define SD_BEGIN()                                                                                                   \
    do {                                                                                                             \
        asm volatile("griddepcontrol.wait;" ::: "memory");                                                           \
        asm volatile("griddepcontrol.launch_dependents;");                                                           \
    } while (0)
#else
#define SD_BEGIN() ((void)0)
#endif
#define SD_LAUNCH(device, kernel, grid, block, shared, ...)                                                          \
    do {                                                                                                             \
        auto sd_kernel_ = kernel;                                                                                    \
        if ((shared) > 48 << 10)                                                                                     \
            cudaFuncSetAttribute(sd_kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(shared));            \
        sd::launch(device, grid, block, shared, sd_kernel_, __VA_ARGS__);                                            \
        sd_device_launched(device, #kernel);                                                                         \
    } while (0)
#define SD_SHARED(type, name)                                                                                        \
    extern __shared__ __align__(128) unsigned char sd_shared_[];                                                     \
    type &name = *reinterpret_cast<type *>(sd_shared_)
#define SD_ALIGNED(p, bytes) ((void)0)      /* the emulator looks */
#endif

namespace sd {

#ifndef SD_EMULATE
/* What fails is found by sd_device_launched(). */
template <class... P, class... A> static inline void
launch(struct sd_device *d, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...), A... a)
{
    cudaLaunchAttribute early = {};
    cudaLaunchConfig_t c = {};

    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = shared;
    c.stream = (cudaStream_t)sd_device_stream(d);
    c.attrs = &early;
    c.numAttrs = sd_device_overlaps(d);
    (void)cudaLaunchKernelEx(&c, kernel, static_cast<P>(a)...);
}
#endif

/* -- element types -------------------------------------------------------------------------------------------------- */

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

static __host__ __device__ inline float
float_of_bits(uint32_t u)
{
#ifdef __CUDA_ARCH__
    return __uint_as_float(u);
#else
    float f;

    __builtin_memcpy(&f, &u, 4);
    return f;
#endif
}

static __host__ __device__ inline uint32_t
bits_of_float(float f)
{
#ifdef __CUDA_ARCH__
    return __float_as_uint(f);
#else
    uint32_t u;

    __builtin_memcpy(&u, &f, 4);
    return u;
#endif
}

static __host__ __device__ inline float to_float(float x) { return x; }
static __host__ __device__ inline float to_float(bf16 x) { return float_of_bits((uint32_t)x.bits << 16); }
static __host__ __device__ inline float
to_float(f16 x)
{
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x.bits));
#else
    uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, e = x.bits >> 10 & 31, m = x.bits & 1023;

    if (e == 31)
        return float_of_bits(sign | 0x7f800000 | m << 13);
    if (e)
        return float_of_bits(sign | (e + 112) << 23 | m << 13);
    return float_of_bits(bits_of_float((float)m * 0x1p-24f) | sign);
#endif
}

/* round to nearest, ties to even; NaN stays NaN */
template <class T> __host__ __device__ inline T from_float(float x);
template <> __host__ __device__ inline float from_float<float>(float x) { return x; }
template <> __host__ __device__ inline bf16
from_float<bf16>(float x)
{
#ifdef __CUDA_ARCH__
    return bf16{ __bfloat16_as_ushort(__float2bfloat16_rn(x)) };
#else
    uint32_t u = bits_of_float(x);

    if ((u & 0x7fffffff) > 0x7f800000)
        return bf16{ (uint16_t)(u >> 16 | 64) };
    return bf16{ (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16) };
#endif
}
template <> __host__ __device__ inline f16
from_float<f16>(float x)
{
#ifdef __CUDA_ARCH__
    return f16{ __half_as_ushort(__float2half_rn(x)) };
#else
    uint32_t u = bits_of_float(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;

    if (a > 0x7f800000)
        return f16{ (uint16_t)(sign | 0x7e00) };
    if (a >= 0x477ff000)
        return f16{ (uint16_t)(sign | 0x7c00) };
    if (a < 0x38800000) {                       /* subnormal: adding 1/2 leaves the number, rounded, in the low bits */
        uint32_t low = bits_of_float(float_of_bits(a) + 0.5f);

        return f16{ (uint16_t)(sign | (low - 0x3f000000)) };
    }
    a += 0xfff + (a >> 13 & 1);
    return f16{ (uint16_t)(sign | (a - 0x38000000) >> 13) };
#endif
}

template <class T> struct dtype_of;
template <> struct dtype_of<float> { static const enum sd_dtype value = SD_F32; };
template <> struct dtype_of<bf16> { static const enum sd_dtype value = SD_BF16; };
template <> struct dtype_of<f16> { static const enum sd_dtype value = SD_F16; };

/* SD_BY_DTYPE(dtype, T, statement) - the statement once for each element type of activations, the right one run. */
#define SD_BY_DTYPE(dtype, T, ...)                                                                                   \
    do {                                                                                                             \
        switch (dtype) {                                                                                             \
        case SD_F32: { typedef float T; __VA_ARGS__; break; }                                                        \
        case SD_BF16: { typedef sd::bf16 T; __VA_ARGS__; break; }                                                    \
        case SD_F16: { typedef sd::f16 T; __VA_ARGS__; break; }                                                      \
        default: sd_bug("cuda", "activations of %s", sd_dtype_name(dtype));                                          \
        }                                                                                                            \
    } while (0)

/* -- vectors: N elements moved at once ------------------------------------------------------------------------------ */

template <class T, int N> struct alignas(sizeof(T) * N) vec { T at[N]; };
template <class T> struct wide { static const int count = 16 / sizeof(T); };    /* elements of 16 bytes */

template <int N, class T> static __device__ inline vec<T, N>
load(const T *p)
{
    SD_ALIGNED(p, sizeof(vec<T, N>));
    return *reinterpret_cast<const vec<T, N> *>(p);
}
template <int N, class T> static __device__ inline void
store(T *p, vec<T, N> v)
{
    SD_ALIGNED(p, sizeof(vec<T, N>));
    *reinterpret_cast<vec<T, N> *>(p) = v;
}

/* few - N neighbouring elements in the 32-bit words that they lie in; one of 16 bits is cut out where it is used.  An array of such
 * would be cut out of its words where it is loaded: in the branch of that load (is it there? is it aligned?), which would wait for
 * memory before the next load is asked for: 0.7 us each on an H100, all others in turn.  load, store: memory is aligned to all N, or
 * to 16 bytes. */
template <int N, class T> struct few {
    static const int WORDS = (N * (int)sizeof(T) + 3) / 4, AT_ONCE = WORDS < 4 ? WORDS : 4;
    struct __attribute__((aligned(AT_ONCE * 4), may_alias)) words { uint32_t at[AT_ONCE]; };
    static_assert(WORDS % AT_ONCE == 0, "whole accesses");
    uint32_t word[WORDS];

    __device__ T
    get(int i) const
    {
        if constexpr (sizeof(T) == 4)
            return T(float_of_bits(word[i]));
        else
            return T{ (uint16_t)(word[i / 2] >> i % 2 * 16) };
    }
    __device__ float operator[](int i) const { return to_float(get(i)); }
    __device__ void
    set(int i, T x)
    {
        if constexpr (sizeof(T) == 4)
            word[i] = bits_of_float(x);
        else
            word[i / 2] = i % 2 ? (word[i / 2] & 0xffff) | (uint32_t)x.bits << 16 : (word[i / 2] & 0xffff0000) | x.bits;
    }
    __device__ void
    load(const T *p)
    {
        SD_ALIGNED(p, N * sizeof(T) < sizeof(words) ? N * sizeof(T) : sizeof(words));
        if constexpr (N * sizeof(T) < 4)
            word[0] = p->bits;
        else
#pragma unroll
            for (int i = 0; i < WORDS; i += AT_ONCE) {
                words w = reinterpret_cast<const words *>(p)[i / AT_ONCE];

#pragma unroll
                for (int j = 0; j < AT_ONCE; j++)
                    word[i + j] = w.at[j];
            }
    }
    __device__ void
    store(T *p) const
    {
        SD_ALIGNED(p, N * sizeof(T) < sizeof(words) ? N * sizeof(T) : sizeof(words));
        if constexpr (N * sizeof(T) < 4)
            *p = get(0);
        else
#pragma unroll
            for (int i = 0; i < WORDS; i += AT_ONCE) {
                words w;

#pragma unroll
                for (int j = 0; j < AT_ONCE; j++)
                    w.at[j] = word[i + j];
                reinterpret_cast<words *>(p)[i / AT_ONCE] = w;
            }
    }
};
static inline bool aligned16(const void *p, int64_t row_bytes) { return ((uintptr_t)p | (uintptr_t)row_bytes) % 16 == 0; }

/* -- warps and blocks ----------------------------------------------------------------------------------------------- */

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;

/* in a fixed tree; every lane gets the result */
static __device__ inline float
warp_sum(float x)
{
    for (int i = WARP / 2; i; i /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, i);
    return x;
}
static __device__ inline float
warp_max(float x)
{
    for (int i = WARP / 2; i; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, i));
    return x;
}
/* room: 32 floats of shared memory, free again after the call; every thread gets the result */
static __device__ inline float
block_sum(float x, float *room)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;

    x = warp_sum(x);
    if (lane == 0)
        room[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? room[lane] : 0);
    __syncthreads();
    return x;
}

/* -- matrix units (sm_80 and later) --------------------------------------------------------------------------------- */

/* mma - d += a b for a tile of 16 x 8 x 16 (T: bf16, f16), fragments as PTX's mma.m16n8k16 wants them:
 * lane l, g = l / 4, t = l % 4:  a[0..3] = (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8), two neighbours along k each;
 * b[0..1] = k 2t, 2t+8 of column g;  d[0..3] = (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1). */
/* ldmatrix - four (two) 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8; r[i] is then
 * the pair (row lane / 4, columns 2 (lane % 4), +1) of matrix i; _turned: of its transpose. */
/* copy_async - 16 bytes from global to shared memory, zeros where !inside; there after commit and wait<how many groups may still
 * be under way> and a barrier. */
#ifndef SD_EMULATE
template <class T> static __device__ inline void mma(float d[4], const uint32_t a[4], const uint32_t b[2]);
template <> __device__ inline void
mma<bf16>(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ inline void
mma<f16>(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ inline uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

static __device__ inline void
ldmatrix4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
static __device__ inline void
ldmatrix4_turned(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
static __device__ inline void
ldmatrix2(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
static __device__ inline void
ldmatrix2_turned(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

static __device__ inline void
copy_async16(void *shared, const void *global, bool inside)
{
    int bytes = inside ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
static __device__ inline void copy_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> static __device__ inline void copy_async_wait(void) { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
#endif

/* two floats to two neighbouring 16-bit elements of a fragment, the first in the low half */
template <class T> static __device__ inline uint32_t
pack2(float low, float high)
{
    return (uint32_t)from_float<T>(low).bits | (uint32_t)from_float<T>(high).bits << 16;
}

/* -- nodes ---------------------------------------------------------------------------------------------------------- */

template <class T> static inline T *data(const struct sd_tensor *x) { return x ? static_cast<T *>(x->data) : nullptr; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline struct sd_device *device_of(const struct sd_node *n) { return sd_graph_device(n->graph); }

}   /* namespace sd */

#endif
