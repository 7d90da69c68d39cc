/* geglu, in vectors; formulas in geglu.c. */
#include "simd.h"

void
SD_V(geglu_forward)(struct sd_node *n)
{
    const float *x = n->in[0]->data;
    float *y = n->out->data;
    int64_t rows = sd_rows(n->out), C = sd_cols(n->out);

#pragma omp parallel for schedule(static) if (rows * C > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + 2 * r * C, *b = a + C;

        for (int64_t c = 0; c < C; c += VW)
            v_put(y + r * C + c, v_get(a + c, C - c) * v_gelu(v_get(b + c, C - c)), C - c);
    }
}

void
SD_V(geglu_backward)(struct sd_node *n)
{
    const float *x = n->in[0]->data, *dy = n->dout->data;
    float *dx = n->din[0]->data;
    int64_t rows = sd_rows(n->out), C = sd_cols(n->out);
    bool store = n->din_store[0];

#pragma omp parallel for schedule(static) if (rows * C > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + 2 * r * C, *b = a + C;
        float *da = dx + 2 * r * C, *db = da + C;

        for (int64_t c = 0; c < C; c += VW) {
            vf gate = v_get(b + c, C - c), d = v_get(dy + r * C + c, C - c), integral = v_phi_integral(gate);
            vf of_a = d * gate * integral, of_b = d * v_get(a + c, C - c) * (integral + v_x_density(gate));

            v_put(da + c, store ? of_a : v_get(da + c, C - c) + of_a, C - c);
            v_put(db + c, store ? of_b : v_get(db + c, C - c) + of_b, C - c);
        }
    }
}
