/* image_resize.c - resizing, byte for byte as Pillow 13 (src/libImaging/Resample.c), and kohya's area averaging.
 *
 * Per axis, input n, box [b0, b1), output m:  scale = (b1 - b0) / m,  f = max(scale, 1),  S = support f.
 * Output i has its centre at c = b0 + (i + 1/2) scale and takes inputs j from trunc(c - S + 1/2) to
 * trunc(c + S + 1/2) - 1 with weights filter((j - c + 1/2) / f), divided by their sum and rounded to 22 bits behind the
 * point.
 *         value = clip8((2^21 + sum pixel weight) >> 22)
 * Between the two passes pixels are 8 bits again, so the order of passes shows in the result.  Pillow 13 does the
 * vertical one first when that leaves much less to do (sd_image_resize), 12 and older never did.
 *
 * Vector code multiplies 16-bit pairs: weight = high 2^11 + low, two sums, joined at the end; all integers, so that the
 * bytes are those of the C loops, which the tests check (sd_image_resize_plain). */
#include "image.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define WITH_AVX2 1
#endif

enum { BITS = 22, HALF_BITS = 11, GROUP = 4 };      /* weights are padded with zeros to groups of 4 */

bool sd_image_resize_plain;

/* ---- filters ------------------------------------------------------------------------------------------------- */

static double
box_filter(double x)
{
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double
bilinear_filter(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double
bicubic_filter(double x)
{
    const double a = -0.5;

    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double
sinc(double x)
{
    if (x == 0.0)
        return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double
lanczos_filter(double x)
{
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static const struct {
    const char *name;
    double (*f)(double);
    double support;
} filters[] = {
    [SD_FILTER_LANCZOS] = { "lanczos", lanczos_filter, 3.0 },
    [SD_FILTER_BICUBIC] = { "bicubic", bicubic_filter, 2.0 },
    [SD_FILTER_BOX] = { "box", box_filter, 0.5 },
    [SD_FILTER_BILINEAR] = { "bilinear", bilinear_filter, 1.0 },
    [SD_FILTER_AREA] = { "area", NULL, 0 },
};

int
sd_filter_named(const char *name)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (!strcmp(name, filters[i].name))
            return (int)i;
    return -1;
}

/* ---- weights of one axis ------------------------------------------------------------------------------------- */

struct axis {
    int start, count;           /* outputs of the part */
    int room;                   /* weights per output, a multiple of GROUP */
    int *first, *length;        /* [count] inputs taken */
    int32_t *weights;           /* [count][room] */
    int16_t *high, *low;        /* [count][room] weight = high * 2^11 + low */
    int from, to;               /* inputs taken by any output of the part */
    bool needed;                /* false: this axis stays as it is */
};

static void
axis_weights(struct axis *a, int in_size, float b0, float b1, int out_size, enum sd_filter filter, double *k)
{
    double scale = (double)(b1 - b0) / out_size, f = scale < 1.0 ? 1.0 : scale;
    double support = filters[filter].support * f, inverse = 1.0 / f;

    for (int i = 0; i < a->count; i++) {
        double centre = b0 + (a->start + i + 0.5) * scale, sum = 0.0;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);

        lo = lo < 0 ? 0 : lo;
        hi = hi > in_size ? in_size : hi;
        for (int j = lo; j < hi; j++)
            sum += k[j - lo] = filters[filter].f((j - centre + 0.5) * inverse);
        for (int j = 0; j < hi - lo; j++) {
            double w = (sum != 0.0 ? k[j] / sum : k[j]) * (1 << BITS);
            int32_t q = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
            size_t at = (size_t)i * (size_t)a->room + (size_t)j;

            a->weights[at] = q;
            a->high[at] = (int16_t)(q >> HALF_BITS);
            a->low[at] = (int16_t)(q & ((1 << HALF_BITS) - 1));
        }
        a->first[i] = lo;
        a->length[i] = hi - lo;
        a->from = i == 0 || lo < a->from ? lo : a->from;
        a->to = i == 0 || hi > a->to ? hi : a->to;
    }
}

static struct axis
make_axis(struct sd_scope *s, int in_size, float b0, float b1, int out_size, int start, int count,
          enum sd_filter filter)
{
    struct axis a = { .start = start, .count = count, .from = start, .to = start + count };
    double scale = (double)(b1 - b0) / out_size;
    size_t n;

    a.needed = out_size != in_size || b0 != 0 || b1 != (float)out_size;
    if (!a.needed)
        return a;
    a.room = (int)ceil(filters[filter].support * (scale < 1.0 ? 1.0 : scale)) * 2 + 1;
    a.room = (a.room + GROUP - 1) / GROUP * GROUP;
    n = (size_t)count * (size_t)a.room;
    a.first = sd_alloc_array(s, (size_t)count, sizeof *a.first);
    a.length = sd_alloc_array(s, (size_t)count, sizeof *a.length);
    a.weights = sd_alloc_array(s, n, sizeof *a.weights);
    a.high = sd_alloc_array(s, n, sizeof *a.high);
    a.low = sd_alloc_array(s, n, sizeof *a.low);
    axis_weights(&a, in_size, b0, b1, out_size, filter, sd_alloc_array(s, (size_t)a.room, sizeof(double)));
    return a;
}

static uint8_t
clip8(int32_t sum)
{
    sum >>= BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* ---- one row, plain C ---------------------------------------------------------------------------------------- */

static void
horizontal_row(uint8_t *to, const uint8_t *from, const struct axis *a, int c)
{
    for (int i = 0; i < a->count; i++) {
        const uint8_t *p = from + (size_t)a->first[i] * (size_t)c;
        const int32_t *k = a->weights + (size_t)i * (size_t)a->room;
        int32_t sum[3] = { 1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1) };

        if (c == 3) {
            for (int j = 0; j < a->length[i]; j++, p += 3) {
                sum[0] += p[0] * k[j];
                sum[1] += p[1] * k[j];
                sum[2] += p[2] * k[j];
            }
            *to++ = clip8(sum[0]);
            *to++ = clip8(sum[1]);
            *to++ = clip8(sum[2]);
        } else {
            for (int j = 0; j < a->length[i]; j++)
                sum[0] += p[j] * k[j];
            *to++ = clip8(sum[0]);
        }
    }
}

static void
vertical_row(uint8_t *to, const uint8_t *from, size_t pitch, size_t n, const int32_t *k, int length)
{
    enum { BLOCK = 64 };

    for (size_t x = 0; x < n; x += BLOCK) {
        size_t m = n - x < BLOCK ? n - x : BLOCK;
        int32_t sum[BLOCK];

        for (size_t i = 0; i < m; i++)
            sum[i] = 1 << (BITS - 1);
        for (int j = 0; j < length; j++) {
            const uint8_t *row = from + (size_t)j * pitch + x;

            for (size_t i = 0; i < m; i++)
                sum[i] += row[i] * k[j];
        }
        for (size_t i = 0; i < m; i++)
            to[x + i] = clip8(sum[i]);
    }
}

/* ---- the same with AVX2 -------------------------------------------------------------------------------------- */

#if WITH_AVX2
#define AVX2 __attribute__((target("avx2")))

static bool
have_avx2(void)
{
    return __builtin_cpu_supports("avx2") && !sd_image_resize_plain;
}

/* hi * 2^11 + lo + 2^21, shifted and clipped to 0..255 in each 32-bit lane */
AVX2 static inline __m256i
finish(__m256i hi, __m256i lo)
{
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(hi, HALF_BITS), lo);

    sum = _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (BITS - 1))), BITS);
    return _mm256_min_epi32(_mm256_max_epi32(sum, _mm256_setzero_si256()), _mm256_set1_epi32(255));
}

/* RGB, two rows at once.  Four pixels are 12 bytes; the shuffle makes pairs r0r1 g0g1 b0b1 (and nothing) in the lower
 * half, r2r3 g2g3 b2b3 in the upper, as 16 bits.  Reads up to 16 bytes from each group of four pixels on. */
AVX2 static void
horizontal_rgb_avx2(uint8_t *to0, uint8_t *to1, const uint8_t *from0, const uint8_t *from1, const struct axis *a)
{
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);

    for (int i = 0; i < a->count; i++, to0 += 3, to1 += 3) {
        size_t at = (size_t)i * (size_t)a->room, x = (size_t)a->first[i] * 3;
        __m256i hi0 = _mm256_setzero_si256(), lo0 = hi0, hi1 = hi0, lo1 = hi0, out;
        __m128i half;
        uint32_t word;

        for (int j = 0; j < a->length[i]; j += GROUP, x += 3 * GROUP) {
            __m256i high = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(a->high + at + (size_t)j)));
            __m256i low = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(a->low + at + (size_t)j)));
            __m256i p0 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(from0 + x)));
            __m256i p1 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(from1 + x)));

            high = _mm256_permutevar8x32_epi32(high, spread);
            low = _mm256_permutevar8x32_epi32(low, spread);
            p0 = _mm256_shuffle_epi8(p0, pairs);
            p1 = _mm256_shuffle_epi8(p1, pairs);
            hi0 = _mm256_add_epi32(hi0, _mm256_madd_epi16(p0, high));
            lo0 = _mm256_add_epi32(lo0, _mm256_madd_epi16(p0, low));
            hi1 = _mm256_add_epi32(hi1, _mm256_madd_epi16(p1, high));
            lo1 = _mm256_add_epi32(lo1, _mm256_madd_epi16(p1, low));
        }
        /* lower and upper halves of each row belong together: row 0 below, row 1 above */
        hi0 = _mm256_add_epi32(_mm256_permute2x128_si256(hi0, hi1, 0x20), _mm256_permute2x128_si256(hi0, hi1, 0x31));
        lo0 = _mm256_add_epi32(_mm256_permute2x128_si256(lo0, lo1, 0x20), _mm256_permute2x128_si256(lo0, lo1, 0x31));
        out = finish(hi0, lo0);
        out = _mm256_packus_epi16(_mm256_packs_epi32(out, out), out);
        half = _mm256_castsi256_si128(out);
        word = (uint32_t)_mm_cvtsi128_si32(half);
        to0[0] = (uint8_t)word, to0[1] = (uint8_t)(word >> 8), to0[2] = (uint8_t)(word >> 16);
        word = (uint32_t)_mm_cvtsi128_si32(_mm256_extracti128_si256(out, 1));
        to1[0] = (uint8_t)word, to1[1] = (uint8_t)(word >> 8), to1[2] = (uint8_t)(word >> 16);
    }
}

/* 16 bytes of a row at a time, two input rows at once; returns how many bytes were done. */
AVX2 static size_t
vertical_row_avx2(uint8_t *to, const uint8_t *from, size_t pitch, size_t n, const int16_t *high, const int16_t *low,
                  int length)
{
    size_t x = 0;

    for (; x + 16 <= n; x += 16) {
        __m256i hi0 = _mm256_setzero_si256(), lo0 = hi0, hi1 = hi0, lo1 = hi0, out;

        for (int j = 0; j < length; j += 2) {
            const uint8_t *p = from + (size_t)j * pitch + x;
            __m128i r0 = _mm_loadu_si128((const void *)p);
            __m128i r1 = j + 1 < length ? _mm_loadu_si128((const void *)(p + pitch)) : _mm_setzero_si128();
            __m256i a = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(r0, r1)),
                    b = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(r0, r1));
            int32_t kh, kl;
            __m256i h, l;

            memcpy(&kh, high + j, sizeof kh);       /* weights are padded: a pair is always there */
            memcpy(&kl, low + j, sizeof kl);
            h = _mm256_set1_epi32(kh);
            l = _mm256_set1_epi32(kl);
            hi0 = _mm256_add_epi32(hi0, _mm256_madd_epi16(a, h));
            lo0 = _mm256_add_epi32(lo0, _mm256_madd_epi16(a, l));
            hi1 = _mm256_add_epi32(hi1, _mm256_madd_epi16(b, h));
            lo1 = _mm256_add_epi32(lo1, _mm256_madd_epi16(b, l));
        }
        out = _mm256_packs_epi32(finish(hi0, lo0), finish(hi1, lo1));   /* 0-3 8-11 | 4-7 12-15 */
        out = _mm256_permute4x64_epi64(out, 0xd8);
        _mm_storeu_si128((void *)(to + x),
                         _mm_packus_epi16(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1)));
    }
    return x;
}
#endif

/* ---- passes -------------------------------------------------------------------------------------------------- */

/* A rectangle of pixels inside a picture. */
struct view {
    const uint8_t *data, *end;      /* end: of all bytes that may be read */
    size_t pitch;
    int channels;
};

static struct view
view_of(const struct sd_image *image, int left, int top)
{
    size_t c = (size_t)image->channels, pitch = (size_t)image->width * c;

    return (struct view){ image->data + (size_t)top * pitch + (size_t)left * c,
                          image->data + (size_t)image->height * pitch, pitch, image->channels };
}

/* The view's left edge is input `origin` of the axis. */
static void
horizontal_pass(struct sd_image *out, struct view in, const struct axis *a)
{
    size_t pitch = (size_t)out->width * (size_t)out->channels;

    #pragma omp parallel for schedule(static)
    for (int y = 0; y < out->height; y += 2) {
        uint8_t *to = out->data + (size_t)y * pitch;
        const uint8_t *from = in.data + (size_t)y * in.pitch;
        bool pair = y + 1 < out->height;

#if WITH_AVX2
        size_t past = ((size_t)a->to + 2 * GROUP) * 3 + 16;  /* no read goes further than this behind a row's start */

        if (in.channels == 3 && pair && have_avx2() && (size_t)(in.end - from) >= in.pitch + past) {
            horizontal_rgb_avx2(to, to + pitch, from, from + in.pitch, a);
            continue;
        }
#endif
        horizontal_row(to, from, a, in.channels);
        if (pair)
            horizontal_row(to + pitch, from + in.pitch, a, in.channels);
    }
}

/* The view's first row is input `origin`. */
static void
vertical_pass(struct sd_image *out, struct view in, const struct axis *a, int origin)
{
    size_t pitch = (size_t)out->width * (size_t)out->channels;

    #pragma omp parallel for schedule(static)
    for (int y = 0; y < out->height; y++) {
        uint8_t *to = out->data + (size_t)y * pitch;
        const uint8_t *from = in.data + (size_t)(a->first[y] - origin) * in.pitch;
        size_t at = (size_t)y * (size_t)a->room, done = 0;

#if WITH_AVX2
        if (have_avx2())
            done = vertical_row_avx2(to, from, in.pitch, pitch, a->high + at, a->low + at, a->length[y]);
#endif
        vertical_row(to + done, from + done, in.pitch, pitch - done, a->weights + at, a->length[y]);
    }
}

/* Horizontal weights count inputs from the left edge; a view that starts at `origin` wants them from there. */
static struct axis
shifted(struct sd_scope *s, struct axis a, int origin)
{
    int *first = sd_alloc_array(s, (size_t)a.count, sizeof *first);

    for (int i = 0; i < a.count; i++)
        first[i] = a.first[i] - origin;
    a.first = first;
    a.from -= origin;
    a.to -= origin;
    return a;
}

static struct sd_image *
resample(struct sd_scope *s, const struct sd_image *image, int width, int height, enum sd_filter filter,
         const float *box, const int *part)
{
    struct axis h = make_axis(s, image->width, box[0], box[2], width, part[0], part[2], filter);
    struct axis v = make_axis(s, image->height, box[1], box[3], height, part[1], part[3], filter);
    bool vertical_first = height < image->height && (long)image->height - height > 2 * ((long)image->width - width);
    struct sd_image *middle, *out;

    if (!h.needed && !v.needed)
        return sd_image_crop(s, image, part[0], part[1], part[2], part[3]);
    out = sd_image_new(s, part[2], part[3], image->channels);
    if (!v.needed) {
        horizontal_pass(out, view_of(image, 0, part[1]), &h);
    } else if (!h.needed) {
        vertical_pass(out, view_of(image, part[0], v.from), &v, v.from);
    } else if (vertical_first) {
        struct axis from_middle = shifted(s, h, h.from);

        middle = sd_image_new(s, h.to - h.from, part[3], image->channels);
        vertical_pass(middle, view_of(image, h.from, v.from), &v, v.from);
        horizontal_pass(out, view_of(middle, 0, 0), &from_middle);
    } else {
        middle = sd_image_new(s, part[2], v.to - v.from, image->channels);
        horizontal_pass(middle, view_of(image, 0, v.from), &h);
        vertical_pass(out, view_of(middle, 0, 0), &v, v.from);
    }
    return out;
}

/* ---- area averaging, as OpenCV's INTER_AREA ------------------------------------------------------------------ */

struct share {                  /* input `from` counts with `weight` in output `to` */
    int from, to;
    float weight;
};

static int
area_shares(struct share *t, int in_size, int out_size, int start, int count)
{
    double scale = 1.0 / ((double)out_size / in_size);
    int n = 0;

    for (int i = start; i < start + count; i++) {
        double lo = i * scale, hi = lo + scale, cell = fmin(scale, in_size - lo);
        int second = (int)floor(hi), first = (int)ceil(lo);

        second = second < in_size - 1 ? second : in_size - 1;
        first = first < second ? first : second;
        if (first - lo > 1e-3)
            t[n++] = (struct share){ first - 1, i - start, (float)((first - lo) / cell) };
        for (int j = first; j < second; j++)
            t[n++] = (struct share){ j, i - start, (float)(1.0 / cell) };
        if (hi - second > 1e-3)
            t[n++] = (struct share){ second, i - start, (float)(fmin(fmin(hi - second, 1.), cell) / cell) };
    }
    return n;
}

/* Whole-number scales: integer sums; 2 x 2 rounds half up, the others half to even. */
static void
area_whole(struct sd_image *out, const struct sd_image *image, int sx, int sy, const int *part)
{
    size_t c = (size_t)image->channels, pitch = (size_t)image->width * c;
    float scale = 1.f / (float)(sx * sy);

    #pragma omp parallel for schedule(static)
    for (int y = 0; y < out->height; y++)
        for (size_t x = 0; x < (size_t)out->width * c; x++) {
            const uint8_t *p = image->data + (size_t)(part[1] + y) * (size_t)sy * pitch +
                               ((size_t)part[0] + x / c) * (size_t)sx * c + x % c;
            int sum = 0;

            for (int j = 0; j < sy; j++)
                for (int i = 0; i < sx; i++)
                    sum += p[(size_t)j * pitch + (size_t)i * c];
            out->data[(size_t)y * (size_t)out->width * c + x] =
                (uint8_t)(sx == 2 && sy == 2 ? (sum + 2) >> 2 : (int)lrintf((float)sum * scale));
        }
}

static void
area_row(float *sum, const uint8_t *row, const struct share *xs, int nx, int c)
{
    if (c == 3)
        for (int k = 0; k < nx; k++)
            for (int i = 0; i < 3; i++)
                sum[xs[k].to * 3 + i] += row[xs[k].from * 3 + i] * xs[k].weight;
    else
        for (int k = 0; k < nx; k++)
            sum[xs[k].to] += row[xs[k].from] * xs[k].weight;
}

static struct sd_image *
area(struct sd_scope *s, const struct sd_image *image, int width, int height, const int *part)
{
    double scale_x = 1.0 / ((double)width / image->width), scale_y = 1.0 / ((double)height / image->height);
    int sx = (int)lrint(scale_x), sy = (int)lrint(scale_y), c = image->channels, nx, ny, n = part[2] * c, *begin;
    struct sd_image *out = sd_image_new(s, part[2], part[3], c);
    struct share *xs, *ys;

    if (fabs(scale_x - sx) < 2.220446049250313e-16 && fabs(scale_y - sy) < 2.220446049250313e-16) {
        area_whole(out, image, sx, sy, part);
        return out;
    }
    xs = sd_alloc_array(s, (size_t)image->width + 2 * (size_t)part[2], sizeof *xs);
    ys = sd_alloc_array(s, (size_t)image->height + 2 * (size_t)part[3], sizeof *ys);
    nx = area_shares(xs, image->width, width, part[0], part[2]);
    ny = area_shares(ys, image->height, height, part[1], part[3]);
    begin = sd_alloc_array(s, (size_t)part[3] + 1, sizeof *begin);
    for (int k = 0; k < ny; k++)
        begin[ys[k].to + 1] = k + 1;
    #pragma omp parallel
    {
        struct sd_scope *own = sd_scope_open();
        float *row = sd_alloc_array(own, (size_t)n, sizeof *row), *sum = sd_alloc_array(own, (size_t)n, sizeof *sum);

        #pragma omp for schedule(static)
        for (int y = 0; y < part[3]; y++) {
            memset(sum, 0, (size_t)n * sizeof *sum);
            for (int k = begin[y]; k < begin[y + 1]; k++) {
                memset(row, 0, (size_t)n * sizeof *row);
                area_row(row, image->data + (size_t)ys[k].from * (size_t)image->width * (size_t)c, xs, nx, c);
                for (int i = 0; i < n; i++)
                    sum[i] += ys[k].weight * row[i];
            }
            for (int i = 0; i < n; i++) {
                long value = lrintf(sum[i]);

                out->data[(size_t)y * (size_t)n + (size_t)i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
            }
        }
        sd_scope_close(own);
    }
    return out;
}

/* ---- entry --------------------------------------------------------------------------------------------------- */

struct sd_image *
sd_image_resize(struct sd_scope *s, const struct sd_image *image, int width, int height, enum sd_filter filter,
                const float box[4], const int part[4])
{
    const float whole[4] = { 0, 0, (float)image->width, (float)image->height };
    const int all[4] = { 0, 0, width, height };
    struct sd_scope *work;
    struct sd_image *made, *out;

    box = box ? box : whole;
    part = part ? part : all;
    if (width < 1 || height < 1 || part[0] < 0 || part[1] < 0 || part[2] < 1 || part[3] < 1 ||
        part[2] > width - part[0] || part[3] > height - part[1])
        sd_bug("sd_image_resize", "part %d x %d at %d, %d of %d x %d", part[2], part[3], part[0], part[1], width,
               height);
    if (!(box[0] >= 0 && box[1] >= 0 && box[2] <= image->width && box[3] <= image->height && box[0] < box[2] &&
          box[1] < box[3]))
        sd_bug("sd_image_resize", "box %g, %g, %g, %g of %d x %d", (double)box[0], (double)box[1], (double)box[2],
               (double)box[3], image->width, image->height);
    if (filter == SD_FILTER_AREA) {
        if (memcmp(box, whole, sizeof whole))
            sd_bug("sd_image_resize", "area averaging of a box");
        if (width > image->width || height > image->height)
            filter = SD_FILTER_LANCZOS;
    }
    if (width == image->width && height == image->height && !memcmp(box, whole, sizeof whole))
        return sd_image_crop(s, image, part[0], part[1], part[2], part[3]);
    work = sd_scope_open();         /* tables and the picture between the passes go at once */
    made = filter == SD_FILTER_AREA ? area(work, image, width, height, part)
                                    : resample(work, image, width, height, filter, box, part);
    out = sd_image_crop(s, made, 0, 0, made->width, made->height);
    sd_scope_close(work);
    return out;
}
