/* emulate.h - CUDA for the tests: what kernels/cuda.h needs to compile a .cu file as host C++ (-DSD_EMULATE) and run it.
 *
 * One rule: whatever a GPU would do silently wrong ends the program here by sd_bug(), naming kernel, block and thread.
 * Blocks run on OpenMP threads, threads of a block are fibres; which runs first changes from block to block and from
 * barrier to barrier (by a hash of the launch's number: the same in every run), so that a result that hangs on it shows.
 * Caught: kernels without SD_BEGIN(); barriers and warp collectives that some threads miss; masks that do not fit; shared memory
 * read before it is written (NaN) or written behind its end; pointers that are not device memory, be it in a struct; an asynchronous
 * copy used before its wait (NaN), or still under way when its thread returns; vectors, rows of ldmatrix and copy_async that are not
 * aligned, or not shared; launches that some card does not take.  Built with RACES=1, data races too (races.cpp).
 * Environment: SD_EMULATE_SEED=N another order; SD_EMULATE_STRICT=0 lets the host touch device memory (a debugger's wish).
 * SD_EMULATE_DRY=FILE: kernels and libraries are launched and do nothing, what a replayed recording launches is written to FILE
 * (dry.cpp), and what a program asks for by sd_device_ask is a small positive number: steps of a full-size model in seconds.
 * SD_EMULATE_CAPABILITY=90 SD_CUDA_LIBS=build/tests/fake: with libraries, in that mode or computing. */
#ifndef SD_EMULATE_H
#define SD_EMULATE_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#include "device.h"
#include "diag.h"

/* -- words of the language ------------------------------------------------------------------------------------------ */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define SD_VECTOR(type, of)                                                                                          \
    struct alignas(2 * sizeof(of)) type##2 { of x, y; };                                                             \
    struct alignas(4 * sizeof(of)) type##4 { of x, y, z, w; };                                                       \
    static inline type##2 make_##type##2(of x, of y) { return { x, y }; }                                            \
    static inline type##4 make_##type##4(of x, of y, of z, of w) { return { x, y, z, w }; }
SD_VECTOR(float, float)
SD_VECTOR(int, int)
SD_VECTOR(uint, unsigned)
SD_VECTOR(ushort, unsigned short)
#undef SD_VECTOR
static_assert(sizeof(float4) == 16 && sizeof(ushort4) == 8, "vectors");

#define threadIdx (sd::emulate::here.thread)
#define blockIdx  (sd::emulate::here.block)
#define blockDim  (sd::emulate::here.block_dim)
#define gridDim   (sd::emulate::here.grid_dim)
#define warpSize  32

namespace sd {
struct bf16;
struct f16;

namespace emulate {

struct place { uint3 thread, block, block_dim, grid_dim; };
extern __thread struct place here;

/* -- launches ------------------------------------------------------------------------------------------------------- */

struct extent {
    int64_t x, y, z;
    extent(dim3 d) : x(d.x), y(d.y), z(d.z) {}
    template <class T, class = std::enable_if_t<std::is_integral<T>::value || std::is_enum<T>::value>> extent(T n) : x((int64_t)n), y(1), z(1) {}
};
struct launch {
    const char *kernel;
    extent grid, block;
    int64_t shared;
    const char *file;               /* the .cu */
};

/* run_now or note it in d's recording; dies where no card would take it */
void library_work(void *stream, void (*work)(void *), const void *argument, size_t bytes);     /* of tests/fake; C: sd_emulate_library_work */
void submit(struct sd_device *d, const launch &l, size_t argument_bytes, std::function<void()> check, std::function<void()> body);
void check_launch(const launch &l);
void run_blocks(const launch &l, const std::function<void()> &body);
/* what runs on this thread, for messages: "kernel softmax<float>, block 3 0 0, thread 17 0 0"; false: the host */
bool whereabouts(char *text, size_t room);
/* is this address in the guard page of a fibre's stack? */
bool in_stack_guard(const void *p);
/* the end of the program, naming kernel, block and thread */
void wrong(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* where device memory may lie */
bool device_range(const unsigned char **base, const unsigned char **limit);
void check_pointer(const char *kernel, int argument, const void *p);
void check_struct(const char *kernel, int argument, const void *words, size_t bytes);

template <class T> static inline void
check_argument(const char *kernel, int i, const T &x)
{
    if constexpr (std::is_pointer<T>::value)
        check_pointer(kernel, i, (const void *)x);
    else if constexpr (std::is_class<T>::value)
        check_struct(kernel, i, &x, sizeof x);
}
template <class T> static inline T as_argument(T x) { return x; }

template <class... P, class... A> static inline void
run(struct sd_device *d, const launch &l, void (*kernel)(P...), A... a)
{
    static_assert(sizeof...(P) == sizeof...(A), "arguments of a kernel");
    static_assert((std::is_trivially_copyable<P>::value && ...), "arguments are copied byte by byte");
    static_assert(!(std::is_reference<P>::value || ...), "a reference is a pointer into the host");
    std::tuple<P...> arguments(as_argument<P>(a)...);
    const char *name = l.kernel;

    submit(d, l, (sizeof(P) + ... + 0),
           [name, arguments] {
               int i = 0;

               std::apply([&](const P &...x) { (check_argument(name, i++, x), ...); }, arguments);
           },
           [kernel, arguments] { std::apply(kernel, arguments); });
}

#define SD_LAUNCH(device, kernel, grid, block, shared, ...)                                                          \
    do {                                                                                                             \
        auto sd_kernel_ = kernel;                                                                                    \
        sd::emulate::run(device, sd::emulate::launch{ #kernel, grid, block, (int64_t)(shared), __BASE_FILE__ }, sd_kernel_, \
                         __VA_ARGS__);                                                                               \
    } while (0)

void misaligned(const void *p, size_t bytes) __attribute__((noreturn));
#define SD_ALIGNED(p, bytes)                                                                                         \
    do {                                                                                                             \
        if ((uintptr_t)(p) % (bytes))                                                                                \
            sd::emulate::misaligned(p, bytes);                                                                       \
    } while (0)

/* a thread begins: SD_BEGIN(); one that has not may have no shared memory, and may not end */
void begins(void);
#define SD_BEGIN() sd::emulate::begins()

void *shared_memory(size_t bytes, size_t alignment);
#define SD_SHARED(type, name) type &name = *static_cast<type *>(sd::emulate::shared_memory(sizeof(type), alignof(type)))

/* For races.cpp, where the blocks run one after the other: what runs now, NULL on the host.  run: number of the block, ever rising;
 * launch: of the last block before this launch; phase, meetings: barriers of the block, of each warp, so far. */
struct moment {
    uint32_t run, launch, phase, meetings[32];
    unsigned thread;
    const unsigned char *shared;
    size_t shared_bytes;
};
extern const struct moment *moment;
/* NULL, or told of what kernels read and write inside the emulator */
extern void (*watch)(const void *p, size_t bytes, bool write);

/* -- barriers and warps --------------------------------------------------------------------------------------------- */

int barrier(bool predicate);                /* returns for how many threads it was true */
enum shuffle_kind { SHUFFLE_FROM, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
uint64_t shuffle(shuffle_kind kind, unsigned mask, uint64_t value, int by, int width);
unsigned ballot(unsigned mask, bool predicate);
void meet(unsigned mask);

template <class T> static inline T
shuffle_any(shuffle_kind kind, unsigned mask, T x, int by, int width)
{
    uint64_t bits = 0;

    memcpy(&bits, &x, sizeof x);
    bits = shuffle(kind, mask, bits, by, width);
    memcpy(&x, &bits, sizeof x);
    return x;
}

void matrix_product(float d[4], const uint32_t a[4], const uint32_t b[2], bool is_f16);
void load_matrices(uint32_t *r, const void *row, int count, bool turned);
void copy_begin(void *shared, const void *global, bool inside);
void copy_group(void);
void copy_finish(int but);                  /* all groups but the last `but` ones */

}   /* namespace emulate */

template <class T> void mma(float d[4], const uint32_t a[4], const uint32_t b[2]);
template <> inline void mma<bf16>(float d[4], const uint32_t a[4], const uint32_t b[2]) { emulate::matrix_product(d, a, b, false); }
template <> inline void mma<f16>(float d[4], const uint32_t a[4], const uint32_t b[2]) { emulate::matrix_product(d, a, b, true); }

static inline void ldmatrix4(uint32_t r[4], const void *row) { emulate::load_matrices(r, row, 4, false); }
static inline void ldmatrix4_turned(uint32_t r[4], const void *row) { emulate::load_matrices(r, row, 4, true); }
static inline void ldmatrix2(uint32_t r[2], const void *row) { emulate::load_matrices(r, row, 2, false); }
static inline void ldmatrix2_turned(uint32_t r[2], const void *row) { emulate::load_matrices(r, row, 2, true); }

static inline void copy_async16(void *shared, const void *global, bool inside) { emulate::copy_begin(shared, global, inside); }
static inline void copy_async_commit(void) { emulate::copy_group(); }
template <int N> static inline void copy_async_wait(void) { emulate::copy_finish(N); }

}   /* namespace sd */

static inline void __syncthreads(void) { sd::emulate::barrier(false); }
static inline int __syncthreads_count(int p) { return sd::emulate::barrier(p != 0); }
static inline int __syncthreads_or(int p) { return sd::emulate::barrier(p != 0) != 0; }
static inline int __syncthreads_and(int p) { return sd::emulate::barrier(p == 0) == 0; }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { sd::emulate::meet(mask); }
static inline unsigned __ballot_sync(unsigned mask, int p) { return sd::emulate::ballot(mask, p != 0); }
static inline int __any_sync(unsigned mask, int p) { return sd::emulate::ballot(mask, p != 0) != 0; }
static inline int __all_sync(unsigned mask, int p) { return sd::emulate::ballot(mask, p == 0) == 0; }
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

#define SD_SHUFFLES(T)                                                                                               \
    static inline T __shfl_sync(unsigned mask, T x, int lane, int width = 32)                                        \
    { return sd::emulate::shuffle_any(sd::emulate::SHUFFLE_FROM, mask, x, lane, width); }                            \
    static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32)                                  \
    { return sd::emulate::shuffle_any(sd::emulate::SHUFFLE_UP, mask, x, (int)by, width); }                           \
    static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32)                                \
    { return sd::emulate::shuffle_any(sd::emulate::SHUFFLE_DOWN, mask, x, (int)by, width); }                         \
    static inline T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32)                                    \
    { return sd::emulate::shuffle_any(sd::emulate::SHUFFLE_XOR, mask, x, with, width); }
SD_SHUFFLES(int)
SD_SHUFFLES(unsigned)
SD_SHUFFLES(long)
SD_SHUFFLES(unsigned long)
SD_SHUFFLES(long long)
SD_SHUFFLES(unsigned long long)
SD_SHUFFLES(float)
SD_SHUFFLES(double)
#undef SD_SHUFFLES

/* -- arithmetic.  glibc declares some of these names, without bodies: hence macros ----------------------------------- */

#define __expf(x)       expf(x)
#define __exp10f(x)     exp10f(x)
#define __logf(x)       logf(x)
#define __log2f(x)      log2f(x)
#define __log10f(x)     log10f(x)
#define __sinf(x)       sinf(x)
#define __cosf(x)       cosf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __tanf(x)       tanf(x)
#define __tanhf(x)      tanhf(x)
#define __powf(x, y)    powf(x, y)
#define __fdividef(x, y) ((float)(x) / (float)(y))
#define rsqrtf(x)       (1 / sqrtf(x))
#define rsqrt(x)        (1 / sqrt(x))
#define normcdff(x)     (0.5f * erfcf(-0.70710678118654752f * (x)))
#define __fadd_rn(x, y) ((float)(x) + (float)(y))
#define __fsub_rn(x, y) ((float)(x) - (float)(y))
#define __fmul_rn(x, y) ((float)(x) * (float)(y))
#define __fdiv_rn(x, y) ((float)(x) / (float)(y))
#define __frcp_rn(x)    (1 / (float)(x))
#define __fsqrt_rn(x)   sqrtf(x)
#define __frsqrt_rn(x)  ((float)(1 / sqrt((double)(x))))
#define __fmaf_rn(x, y, z) fmaf(x, y, z)
#define __dadd_rn(x, y) ((double)(x) + (double)(y))
#define __dsub_rn(x, y) ((double)(x) - (double)(y))
#define __dmul_rn(x, y) ((double)(x) * (double)(y))
#define __ddiv_rn(x, y) ((double)(x) / (double)(y))
#define __fma_rn(x, y, z) fma(x, y, z)

static inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1.0f : 0.0f; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline unsigned __float2uint_rn(float x) { return (unsigned)rintf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
static inline int __mulhi(int x, int y) { return (int)((int64_t)x * y >> 32); }
static inline unsigned long long
__umul64hi(unsigned long long x, unsigned long long y)
{
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T x) { *p = x; }
template <class T> static inline void __stcg(T *p, T x) { *p = x; }

#define SD_MIN_MAX(R, A, B)                                                                                          \
    static inline R min(A a, B b) { return (R)b < (R)a ? (R)b : (R)a; }                                              \
    static inline R max(A a, B b) { return (R)a < (R)b ? (R)b : (R)a; }
#define SD_MIN_MAX_MIXED(U, S) SD_MIN_MAX(S, S, S) SD_MIN_MAX(U, U, U) SD_MIN_MAX(U, U, S) SD_MIN_MAX(U, S, U)
SD_MIN_MAX_MIXED(unsigned, int)
SD_MIN_MAX_MIXED(unsigned long, long)
SD_MIN_MAX_MIXED(unsigned long long, long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
#undef SD_MIN_MAX
#undef SD_MIN_MAX_MIXED

#endif
