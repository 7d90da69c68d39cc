/* product_weight.c - the gradient of a weight, for each of its kernel elements k:
 *     dw[k] = sum_i dy[i] x[s i + k - top]
 * a product of rows of dy and of x, one transposed, in chunks of positions, chunk after chunk (product.c has the rest). */
#include "product_internal.h"

#if SD_REAL_IS_FLOAT

enum { POSITIONS = 1024 };      /* of a chunk */

struct weight_scratch {
    const float **left, **right;            /* [POSITIONS] */
    float *turned;                          /* [left columns, POSITIONS] */
    float *packed;                          /* panels of right */
    float *result;                          /* [taps, left columns, right columns] */
};

static int64_t
chunk_of(const struct product_shape *s)
{
    int64_t positions = s->batch * s->out_height * s->out_width;

    return positions < POSITIONS ? positions : POSITIONS;
}

static size_t
weight_scratch(struct weight_scratch *w, const struct product *p, char *room)
{
    const struct product_shape *s = &p->s;
    int64_t left = p->swapped ? s->in : s->out, right = p->swapped ? s->out : s->in, chunk = chunk_of(s);
    size_t bytes[] = { (size_t)chunk * sizeof(float *), (size_t)chunk * sizeof(float *),
                       (size_t)(left * chunk) * sizeof(float),
                       gemm_matrix_bytes(chunk, right, p->bf16),
                       (size_t)(s->in * s->out * s->kernel_height * s->kernel_width) * sizeof(float) };
    size_t at[5], total = 0;

    for (int i = 0; i < 5; i++) {
        at[i] = total;
        total += align(bytes[i]);
    }
    if (room)
        *w = (struct weight_scratch){ (const float **)(room + at[0]), (const float **)(room + at[1]),
                                      (float *)(room + at[2]),
                                      (float *)(room + at[3]), (float *)(room + at[4]) };
    return total;
}

static void
source_rows(const float **rows, const float *x, const struct product_shape *s, int64_t first, int64_t count, int ky,
            int kx)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t p = first + i, y = p / s->out_width % s->out_height * s->a.stride + ky - s->a.top;
        int64_t c = p % s->out_width * s->a.stride + kx - s->a.left, b = p / s->out_width / s->out_height;
        int up = s->a.upsample;
        bool inside = y >= 0 && y < s->height * up && c >= 0 && c < s->width * up;

        rows[i] = inside ? x + ((b * s->height + y / up) * s->width + c / up) * s->x_pitch : NULL;
    }
}

static void
turn(float *turned, const float *const *rows, int64_t count, int64_t columns)
{
    enum { WIDE = 16 };

#pragma omp parallel for schedule(static)
    for (int64_t a0 = 0; a0 < columns; a0 += WIDE) {
        int64_t a1 = a0 + WIDE < columns ? a0 + WIDE : columns;

        for (int64_t p = 0; p < count; p++)
            for (int64_t a = a0; a < a1; a++)
                turned[a * count + p] = rows[p] ? rows[p][a] : 0;
    }
}

/* One chunk of positions, one tap. */
static void
weight_chunk(const struct product *p, const struct weight_scratch *w, float *result, int64_t pitch, bool begin,
             int64_t count)
{
    int64_t left = p->swapped ? p->s.in : p->s.out, right = p->swapped ? p->s.out : p->s.in;
    static const struct gemm_tap one = { 0, 0, 1, 1 };
    struct gemm g = { .batch = 1, .height = 1, .width = left, .depth = count, .columns = right, .taps = 1, .tap = &one,
                      .x = w->turned, .x_height = 1, .x_width = left, .x_column = count, .step = 1, .bf16 = p->bf16,
                      .packed = w->packed,
                      .out = result, .out_column = pitch, .start = begin ? NULL : result };

    gemm_pack_rows(w->packed, p->swapped ? w->left : w->right, count, right, p->bf16);
    gemm_run(&g);
}

static void
weight_gradient(const struct sd_node *n, const struct product *p)
{
    const struct product_shape *s = &p->s;
    struct weight_scratch w;
    int64_t positions = s->batch * s->out_height * s->out_width, chunk = chunk_of(s), matrix = s->in * s->out;
    int64_t right = p->swapped ? s->out : s->in;
    int taps = s->kernel_height * s->kernel_width;
    float *dw = (float *)n->din[1]->data + p->first * taps;
    const float *dy = n->dout->data, *x = n->in[p->input]->data;
    bool straight = taps == 1 && !p->swapped, store = n->din_store[1];

    weight_scratch(&w, p, n->scratch);
    for (int64_t first = 0; first < positions; first += chunk) {
        int64_t count = positions - first < chunk ? positions - first : chunk;

        for (int64_t i = 0; i < count; i++)
            w.left[i] = dy + (first + i) * s->out;
        if (!p->swapped)
            turn(w.turned, w.left, count, s->out);
        for (int t = 0; t < taps; t++) {
            source_rows(w.right, x, s, first, count, t / s->kernel_width, t % s->kernel_width);
            if (p->swapped)
                turn(w.turned, w.right, count, s->in);
            if (straight)
                weight_chunk(p, &w, dw, p->row, first == 0 && store, count);
            else
                weight_chunk(p, &w, w.result + t * matrix, right, first == 0, count);
        }
    }
    if (straight)
        return;
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < s->out; o++)
        for (int64_t c = 0; c < s->in; c++)
            for (int t = 0; t < taps; t++) {
                float v = w.result[t * matrix + (p->swapped ? c * s->out + o : o * s->in + c)];
                float *to = &dw[(o * p->row + c) * taps + t];

                *to = store ? v : *to + v;
            }
}

size_t
product_weight_scratch(const struct product *p)
{
    return weight_scratch(NULL, p, NULL);
}

bool
product_backward_weight(struct sd_node *n)
{
    if (!n->vendor)
        return false;
    for (const struct product *p = n->vendor; p; p = p->beside)
        weight_gradient(n, p);
    return true;
}

#endif
