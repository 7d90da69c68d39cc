/* language: what kernels/cuda.h promises, on whatever runs it, the emulator or a card: barriers, sums of a block,
 * shuffles and votes, the layouts of mma and ldmatrix, asynchronous copies, elements in words, conversions.  Every number is exact:
 * results must be equal. */
#include "cuda.h"
#include "on_device.h"

using namespace sd;

static struct sd_device *device;

template <class T> static T *
room(size_t count)
{
    return up(device, std::vector<T>(count));
}

/* -- barriers and warps -------------------------------------------------------------------------------------------- */

enum { BLOCK = 128, BLOCKS = 64 };
struct row { float at[BLOCK]; };

/* y[i] = x[n-1-i] within each block */
static __global__ void
turn_kernel(float *y, const float *x)
{
    SD_BEGIN();
    SD_SHARED(struct row, s);
    int t = (int)threadIdx.x;

    s.at[t] = x[blockIdx.x * BLOCK + t];
    __syncthreads();
    y[blockIdx.x * BLOCK + t] = s.at[BLOCK - 1 - t];
}

static __global__ void
sum_kernel(float *y, const float *x)
{
    SD_BEGIN();
    SD_SHARED(struct row, s);
    float sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x], s.at);

    if (threadIdx.x == blockDim.x - 1)
        y[blockIdx.x] = sum;
}

static void
check_barriers(void)
{
    std::vector<float> x(BLOCKS * BLOCK), turned(BLOCKS * BLOCK), sums(BLOCKS);

    for (int i = 0; i < BLOCKS * BLOCK; i++) {
        x[i] = (float)(i * 7 % 1000);
        sums[i / BLOCK] += x[i];
        turned[i / BLOCK * BLOCK + BLOCK - 1 - i % BLOCK] = x[i];
    }

    float *dx = up(device, x), *dy = room<float>(BLOCKS * BLOCK);

    SD_LAUNCH(device, turn_kernel, BLOCKS, BLOCK, sizeof(struct row), dy, dx);
    CHECK(same_bits(down(device, dy, BLOCKS * BLOCK), turned), "shared memory behind a barrier");
    SD_LAUNCH(device, sum_kernel, BLOCKS, BLOCK, sizeof(struct row), dy, dx);
    CHECK(same_bits(down(device, dy, BLOCKS), sums), "block_sum");
    sd_device_free(device, dx);
    sd_device_free(device, dy);
}

/* what each lane gets, as CUDA's manual has it: columns 0 to 7 */
static __global__ void
shuffle_kernel(int *y)
{
    SD_BEGIN();
    int l = (int)threadIdx.x % WARP, *to = y + threadIdx.x * 8;

    to[0] = __shfl_sync(ALL_LANES, l, 5);
    to[1] = __shfl_sync(ALL_LANES, l, 3, 8);
    to[2] = __shfl_up_sync(ALL_LANES, l, 3);
    to[3] = __shfl_down_sync(ALL_LANES, l, 3, 16);
    to[4] = __shfl_xor_sync(ALL_LANES, l, 9);
    to[5] = (int)__ballot_sync(ALL_LANES, l % 3 == 0);
    to[6] = l < 8 ? __shfl_xor_sync(0xffu, l, 1) : -1;
    to[7] = __any_sync(ALL_LANES, l == 7) + 2 * __all_sync(ALL_LANES, l < 32) + 4 * __all_sync(ALL_LANES, l < 31)
          + 8 * (__syncthreads_count(l == 0) == 2) + 16 * __syncthreads_or(threadIdx.x == 40) + 32 * __syncthreads_and(l < 32);
}

static void
check_shuffles(void)
{
    int wrong = 0, *dy = room<int>(64 * 8);

    SD_LAUNCH(device, shuffle_kernel, 1, 64, 0, dy);

    std::vector<int> y = down(device, dy, 64 * 8);

    for (int t = 0; t < 64; t++) {
        int l = t % 32, want[8] = {
            5, l / 8 * 8 + 3, l < 3 ? l : l - 3, l % 16 < 13 ? l + 3 : l, l ^ 9, 0x49249249, l < 8 ? l ^ 1 : -1, 1 + 2 + 8 + 16 + 32
        };

        for (int i = 0; i < 8; i++)
            wrong += y[t * 8 + i] != want[i];
    }
    CHECK(wrong == 0, "shuffles and votes: %d of %d wrong", wrong, 64 * 8);
    sd_device_free(device, dy);
}

/* -- matrix units -------------------------------------------------------------------------------------------------- */

/* d = a b for a [16,16], b [16,8] row-major, by fragments, loaded by hand or from shared memory */
template <class T> struct operands { T a[16][16], at[16][16], b[16][8], bt[8][16]; };
enum way { BY_HAND, BY_ROWS, TURNED, WRONG };

template <class T> static __global__ void
product_kernel(float *d, const T *a, const T *b, int way)
{
    SD_BEGIN();
    SD_SHARED(struct operands<T>, s);
    int l = (int)threadIdx.x, g = l / 4, t = l % 4;
    uint32_t fa[4], fb[2];
    float fd[4] = { 0, 0, 0, 0 };

    for (int i = l; i < 256; i += WARP)
        s.at[i % 16][i / 16] = s.a[i / 16][i % 16] = a[i];
    for (int i = l; i < 128; i += WARP)
        s.bt[i % 8][i / 8] = s.b[i / 8][i % 8] = b[i];
    __syncwarp();
    if (way == BY_ROWS) {
        ldmatrix4(fa, &s.a[l % 16][l / 16 * 8]);
        ldmatrix2(fb, &s.bt[l % 8][l / 8 % 2 * 8]);
    } else if (way == TURNED) {
        ldmatrix4_turned(fa, &s.at[l % 8 + l / 16 * 8][l / 8 % 2 * 8]);
        ldmatrix2_turned(fb, &s.b[l % 16][0]);
    } else {
        for (int i = 0; i < 4; i++)
            memcpy(&fa[i], &s.a[g + i % 2 * 8][2 * t + i / 2 * 8], 4);
        for (int i = 0; i < 2; i++)
            memcpy(&fb[i], &s.bt[g][2 * t + i * 8], 4);
    }
    if (way == WRONG) {         /* planted: the two middle fragments of a change places */
        uint32_t x = fa[1];

        fa[1] = fa[2];
        fa[2] = x;
    }
    mma<T>(fd, fa, fb);
    for (int i = 0; i < 4; i++)
        d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}

template <class T> static void
check_product(const char *name)
{
    std::vector<T> a(256), b(128);
    std::vector<float> want(128);

    for (int i = 0; i < 256; i++)
        a[i] = from_float<T>((float)((i * 37 + 11) % 61 - 30) / 16);
    for (int i = 0; i < 128; i++)
        b[i] = from_float<T>((float)((i * 53 + 7) % 47 - 23) / 8);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++)
            for (int k = 0; k < 16; k++)
                want[m * 8 + n] += to_float(a[m * 16 + k]) * to_float(b[k * 8 + n]);

    T *da = up(device, a), *db = up(device, b);
    float *dd = room<float>(128);

    for (int way = BY_HAND; way <= WRONG; way++) {
        static const char *const ways[] = { "fragments by hand", "ldmatrix", "ldmatrix, turned", "wrong fragments" };
        std::vector<float> d;
        int wrong = 0;

        SD_LAUNCH(device, product_kernel<T>, 1, WARP, sizeof(struct operands<T>), dd, da, db, way);
        d = down(device, dd, 128);
        for (int i = 0; i < 128; i++)
            wrong += d[i] != want[i];           /* exact in f32 */
        CHECK(way < WRONG ? wrong == 0 : wrong > 100, "mma of %s, %s: %d of 128 wrong", name, ways[way], wrong);
    }
    sd_device_free(device, da);
    sd_device_free(device, db);
    sd_device_free(device, dd);
}

/* ldmatrix4 as it is and turned against their definition */
struct matrices { uint16_t at[32][8]; };
static __global__ void
matrices_kernel(uint32_t *r, bool turned)
{
    SD_BEGIN();
    SD_SHARED(struct matrices, s);
    int l = (int)threadIdx.x;
    uint32_t f[4];

    for (int i = 0; i < 8; i++)
        s.at[l][i] = (uint16_t)(l * 8 + i);
    __syncwarp();
    if (turned)
        ldmatrix4_turned(f, s.at[l]);
    else
        ldmatrix4(f, s.at[l]);
    for (int i = 0; i < 4; i++)
        r[l * 4 + i] = f[i];
}

static void
check_matrices(void)
{
    uint32_t *dr = room<uint32_t>(128);

    for (uint32_t turned = 0; turned < 2; turned++) {
        int wrong = 0;

        SD_LAUNCH(device, matrices_kernel, 1, WARP, sizeof(struct matrices), dr, turned == 1);

        std::vector<uint32_t> r = down(device, dr, 128);

        for (uint32_t l = 0; l < 32; l++)
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t pair = l % 4 * 2, line = l / 4, low = i * 64 + (turned ? pair * 8 + line : line * 8 + pair);

                wrong += r[l * 4 + i] != (low | (low + (turned ? 8 : 1)) << 16);
            }
        CHECK(wrong == 0, "ldmatrix4%s: %d of 128 wrong", turned ? "_turned" : "", wrong);
    }
    sd_device_free(device, dr);
}

/* -- asynchronous copies ------------------------------------------------------------------------------------------- */

/* rows of x pass through four buffers, three of them under way; what is not `inside` is zeros, whatever its address */
enum { STAGES = 4 };
struct stages { float at[STAGES][BLOCK]; };
static __global__ void
copy_kernel(float *y, const float *x, int rows)
{
    SD_BEGIN();
    SD_SHARED(struct stages, s);
    int t = (int)threadIdx.x;

    for (int i = 0; i < STAGES - 1 + rows; i++) {
        if (i >= STAGES - 1) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();
            y[(i - STAGES + 1) * BLOCK + t] = s.at[(i - STAGES + 1) % STAGES][BLOCK - 1 - t];
        }
        if (t < BLOCK / 4 && i < rows) {
            bool inside = t != i % 32;

            copy_async16(&s.at[i % STAGES][t * 4], inside ? x + i * BLOCK + t * 4 : x + (int64_t)1000000 * BLOCK, inside);
        }
        copy_async_commit();
    }
    copy_async_wait<0>();
}

static void
check_copies(void)
{
    enum { ROWS = 41 };
    std::vector<float> x(ROWS * BLOCK), want(ROWS * BLOCK);

    for (int i = 0; i < ROWS * BLOCK; i++) {
        x[i] = (float)(i + 1);
        want[i / BLOCK * BLOCK + BLOCK - 1 - i % BLOCK] = i % BLOCK / 4 == i / BLOCK % 32 ? 0 : x[i];
    }

    float *dx = up(device, x), *dy = room<float>(ROWS * BLOCK);

    SD_LAUNCH(device, copy_kernel, 1, BLOCK, sizeof(struct stages), dy, dx, +ROWS);
    CHECK(same_bits(down(device, dy, ROWS * BLOCK), want), "asynchronous copies, three rows under way, zeros between");
    sd_device_free(device, dx);
    sd_device_free(device, dy);
}

/* -- elements in words --------------------------------------------------------------------------------------------- */

/* y: each N neighbours of x the other way round, the first by way of float, what was there before twice over */
template <int N, class T> static __global__ void
few_kernel(T *y, const T *x, int count)
{
    SD_BEGIN();
    int first = ((int)blockIdx.x * BLOCK + (int)threadIdx.x) * N;
    few<N, T> from, to;

    if (first >= count)
        return;
    from.load(x + first);
    to.load(x + first);
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int j = N - 1; j >= 0; j--)
            to.set(j, j ? from.get(N - 1 - j) : from_float<T>(from[N - 1]));
    to.store(y + first);
}

template <int N, class T> static void
check_few(void)
{
    enum { COUNT = 8 * 300 };
    std::vector<T> x(COUNT), want(COUNT);

    for (int i = 0; i < COUNT; i++)
        x[i] = from_float<T>((float)(i % 241 - 120));
    for (int i = 0; i < COUNT; i++)
        want[i] = x[i / N * N + N - 1 - i % N];

    T *dx = up(device, x), *dy = room<T>(COUNT);

    SD_LAUNCH(device, (few_kernel<N, T>), (unsigned)ceil_div(COUNT / N, BLOCK), BLOCK, 0, dy, dx, +COUNT);
    CHECK(same_bits(down(device, dy, COUNT), want), "%d elements of %zu bytes in words", N, sizeof(T));
    sd_device_free(device, dx);
    sd_device_free(device, dy);
}

template <class T> static void
check_fews(void)
{
    check_few<1, T>();
    check_few<2, T>();
    check_few<4, T>();
    check_few<8, T>();
}

/* -- conversions: the device's instructions against cuda.h's arithmetic on the host -------------------------------- */

template <class T> static __global__ void
convert_kernel(float *wide, T *narrow, const T *from_narrow, const float *from_wide, int64_t narrows, int64_t wides)
{
    SD_BEGIN();
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;

    if (i < narrows)
        wide[i] = to_float(from_narrow[i]);
    if (i < wides)
        narrow[i] = from_float<T>(from_wide[i]);
}

static bool is_nan(float x) { return x != x; }

template <class T> static void
check_conversions(const char *name)
{
    std::vector<T> all(65536);
    std::vector<float> near;

    for (uint32_t i = 0; i < 65536; i++) {
        float x, next;

        all[i].bits = (uint16_t)i;
        x = to_float(all[i]);
        next = to_float(T{ (uint16_t)(i + 1) });
        near.push_back(x);
        if (!is_nan(x) && !is_nan(next))
            for (float middle : { x + (next - x) / 2, x * 1.0000001f })
                for (float at : { middle, nextafterf(middle, INFINITY), nextafterf(middle, -INFINITY) })
                    near.push_back(at);
        near.push_back(float_of_bits(i << 16 | (i * 40503 & 0xffff)));
    }

    int64_t count = (int64_t)near.size();
    float *dwide = room<float>(all.size()), *dnear = up(device, near);
    T *dnarrow = room<T>(near.size()), *dall = up(device, all);
    int64_t up_wrong = 0, down_wrong = 0;

    SD_LAUNCH(device, convert_kernel<T>, (unsigned)ceil_div(count, BLOCK), BLOCK, 0, dwide, dnarrow, (const T *)dall,
              (const float *)dnear, (int64_t)all.size(), count);

    std::vector<float> wide = down(device, dwide, all.size());
    std::vector<T> narrow = down(device, dnarrow, near.size());

    for (size_t i = 0; i < all.size(); i++)
        up_wrong += is_nan(to_float(all[i])) ? !is_nan(wide[i]) : bits_of_float(wide[i]) != bits_of_float(to_float(all[i]));
    for (size_t i = 0; i < near.size(); i++)
        down_wrong += is_nan(near[i]) ? !is_nan(to_float(narrow[i])) : narrow[i].bits != from_float<T>(near[i]).bits;
    CHECK(up_wrong == 0, "%s to f32: %lld of 65536 wrong", name, (long long)up_wrong);
    CHECK(down_wrong == 0, "f32 to %s: %lld of %lld wrong", name, (long long)down_wrong, (long long)count);
    sd_device_free(device, dwide);
    sd_device_free(device, dnarrow);
    sd_device_free(device, dall);
    sd_device_free(device, dnear);
}

int
main(void)
{
    device = open_device();
    check_barriers();
    check_shuffles();
    check_product<bf16>("bf16");
    check_product<f16>("f16");
    check_matrices();
    check_conversions<bf16>("bf16");
    check_conversions<f16>("f16");
    check_copies();
    check_fews<float>();
    check_fews<bf16>();
    check_fews<f16>();
    sd_device_close(device);
    return check_done();
}
