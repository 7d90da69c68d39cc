/* reduce: sums in a fixed order. */
#include "reduce.h"

double
sd_tree_sum(double *x, int count)
{
    for (int half = count / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            x[i] += x[i + half];
    return x[0];
}

double
sd_sum_squares(const float *x, size_t n)
{
    double pieces[SD_PIECES];

#pragma omp parallel for schedule(static) if (n > 1 << 16)
    for (int k = 0; k < SD_PIECES; k++) {
        double lanes[SD_LANES] = { 0 };
        size_t i = sd_piece(n, k), end = sd_piece(n, k + 1);

        for (; i + SD_LANES <= end; i += SD_LANES)
#pragma omp simd
            for (int j = 0; j < SD_LANES; j++)
                lanes[j] += (double)x[i + (size_t)j] * x[i + (size_t)j];
        for (int j = 0; i < end; i++, j++)
            lanes[j] += (double)x[i] * x[i];
        pieces[k] = sd_tree_sum(lanes, SD_LANES);
    }
    return sd_tree_sum(pieces, SD_PIECES);
}

double
sd_clip_factor(double norm, double max_norm)
{
    double factor = max_norm > 0 ? max_norm / (norm + 1e-6) : 1;

    return factor < 1 ? factor : 1;
}
