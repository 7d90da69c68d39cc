/* run_convert - "one body, every dtype": the C loops compute in `real`; around them, operands of other types are converted and
 * results rounded, so that every op is defined for every type.  For definitions and tests: nothing here is fast. */
#include "plan_internal.h"

#include <string.h>

/* -- numbers -------------------------------------------------------------------------------------------------------- */

static float
from_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, 4);
    return f;
}

static uint32_t
to_bits(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return bits;
}

static float
from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;

    if (e == 31)
        return from_bits(sign | 0x7f800000 | m << 13);
    if (e)
        return from_bits(sign | (e + 112) << 23 | m << 13);
    return from_bits(to_bits((float)m * 0x1p-24f) | sign);
}

/* nearest, ties to even; NaN stays NaN */
static uint16_t
to_bf16(float f)
{
    uint32_t u = to_bits(f);

    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static uint16_t
to_f16(float f)
{
    uint32_t u = to_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;

    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000)         /* subnormal: adding 1/2 leaves the number, rounded, in the low bits */
        return (uint16_t)(sign | (to_bits(from_bits(a) + 0.5f) - 0x3f000000));
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

void
sd_to_real(real *to, const void *from, enum sd_dtype dtype, size_t count)
{
    if (dtype == SD_F32) {
        memcpy(to, from, count * sizeof *to);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t h;

        memcpy(&h, (const char *)from + 2 * i, 2);
        to[i] = dtype == SD_BF16 ? from_bits((uint32_t)h << 16) : from_f16(h);
    }
}

void
sd_from_real(void *to, enum sd_dtype dtype, const real *from, size_t count)
{
    if (dtype == SD_F32) {
        memcpy(to, from, count * sizeof *from);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t h = dtype == SD_BF16 ? to_bf16((float)from[i]) : to_f16((float)from[i]);

        memcpy((char *)to + 2 * i, &h, 2);
    }
}

/* -- nodes ---------------------------------------------------------------------------------------------------------- */

/* Tensors that lie on the same bytes are converted once, whole: views of them stay views. */
struct shadows {
    int count;
    struct shadow {
        const struct sd_tensor *base;
        real *values;
    } of[3 * SD_MAX_IN];
    struct sd_tensor tensor[3 * SD_MAX_IN];
    int tensors;
    char *room;
};

enum { ALIGN = 64 };

static size_t
room_for(const struct sd_tensor *base)
{
    return (base->numel * sizeof(real) + ALIGN - 1) / ALIGN * ALIGN;
}

static bool
foreign(const struct sd_tensor *x)
{
    return x && (x->dtype == SD_BF16 || x->dtype == SD_F16);
}

/* Calls f for every operand of n: inputs, output, their gradients. */
static void
each(const struct sd_node *n, void (*f)(const struct sd_tensor *x, void *arg), void *arg)
{
    for (int a = 0; a < n->n_in; a++)
        if (foreign(n->in[a]))
            f(n->in[a], arg);
    if (foreign(n->out))
        f(n->out, arg);
    if (foreign(n->dout))
        f(n->dout, arg);
    for (int a = 0; a < n->n_in; a++)
        if (foreign(n->din[a]))
            f(n->din[a], arg);
}

static void
add_bytes(const struct sd_tensor *x, void *sum)
{
    *(size_t *)sum += room_for(x->base ? x->base : x);
}

size_t
sd_convert_bytes(const struct sd_node *n)
{
    size_t sum = 0;

    each(n, add_bytes, &sum);
    return sum;
}

static real *
values_of(struct shadows *s, const struct sd_tensor *base)
{
    for (int i = 0; i < s->count; i++)
        if (s->of[i].base == base)
            return s->of[i].values;
    s->of[s->count] = (struct shadow){ base, (real *)s->room };
    s->room += room_for(base);
    sd_to_real(s->of[s->count].values, base->data, base->dtype, base->numel);
    return s->of[s->count++].values;
}

static struct sd_tensor *
shadow(struct shadows *s, struct sd_tensor *x)
{
    struct sd_tensor *y;

    if (!foreign(x))
        return x;
    y = &s->tensor[s->tensors++];
    *y = *x;
    y->dtype = SD_F32;
    y->data = values_of(s, base_of(x)) + x->offset;
    return y;
}

static void
give_back(const struct shadows *s, const struct sd_tensor *x)
{
    struct sd_tensor *base = x->base ? x->base : (struct sd_tensor *)(uintptr_t)x;

    for (int i = 0; i < s->count; i++)
        if (s->of[i].base == base)
            sd_from_real(base->data, base->dtype, s->of[i].values, base->numel);
}

void
sd_convert_run(struct sd_node *n, bool backward)
{
    struct shadows s = { .room = (char *)n->scratch + n->own_scratch };
    struct sd_node copy = *n;

    for (int a = 0; a < n->n_in; a++)
        copy.in[a] = shadow(&s, n->in[a]);
    copy.out = shadow(&s, n->out);
    if (!backward) {
        sd_ops[n->op].forward_cpu(&copy);
        if (foreign(n->out))
            give_back(&s, n->out);
        return;
    }
    copy.dout = shadow(&s, n->dout);
    for (int a = 0; a < n->n_in; a++)
        copy.din[a] = shadow(&s, n->din[a]);
    sd_ops[n->op].backward_cpu(&copy);
    for (int a = 0; a < n->n_in; a++)
        if (foreign(n->din[a]))
            give_back(&s, n->din[a]);
}
