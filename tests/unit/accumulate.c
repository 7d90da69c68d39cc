/* accumulate, trainables: groups lie together; sums over micro-batches are a fixed tree, and the mean of the large
 * batch. */
#include "../check.h"
#include "train/accumulate.h"

enum { N = 37 };

static struct sd_trainables *
some(struct sd_scope *s)
{
    struct sd_trainables *t = sd_trainables_new(s);

    sd_trainables_add(t, "unet", "a", 2, (int64_t[]){ 2, 5 });
    sd_trainables_add(t, "tokens", "r", 1, (int64_t[]){ 9 });
    sd_trainables_add(t, "unet", "b", 2, (int64_t[]){ 3, 6 });
    sd_trainables_allocate(t);
    return t;
}

static float
gradient(int sample, size_t i)
{
    return sinf((float)(sample * 31 + (int)i * 7)) * (sample % 3 ? 1 : 1000);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_trainables *t = some(s);
    struct sd_accumulator *a = sd_accumulator_new(t);
    double worst = 0, loss, wrong = 0;

    CHECK(t->groups == 2 && t->count == N && t->group[0].begin == 0 && t->group[0].count == 28
              && t->group[1].begin == 28,
          "groups lie together");
    CHECK(strcmp(t->param[1]->path, "b") == 0 && t->param[1]->value == (real *)(t->value + 10)
          && t->param[2]->grad == (real *)(t->grad + 28), "parameters in the order added, within a group");
    CHECK(sd_trainables_group(t, "tokens") == &t->group[1] && !sd_trainables_group(t, "vae"), "groups by name");
    for (int micro = 1; micro <= 33; micro++) {     /* micro-batches of one, two, three samples */
        double want[N] = { 0 }, size[N] = { 0 }, losses = 0;
        int64_t samples = 0;
        int sample = 0;

        for (int k = 0; k < micro; k++) {
            double sum = 0;

            for (int b = 0; b <= k % 3; b++, sample++) {
                for (size_t i = 0; i < N; i++) {
                    t->grad[i] += gradient(sample, i);
                    want[i] += gradient(sample, i);
                    size[i] += fabsf(gradient(sample, i));
                }
                sum += 0.5 + sample;
            }
            losses += sum;
            sd_accumulate(a, sum, k % 3 + 1);
            for (size_t i = 0; i < N; i++)
                wrong += t->grad[i] != 0;
        }
        samples = sd_accumulator_finish(a, &loss);
        wrong += samples != sample || fabs(loss - losses / sample) > 1e-9 * losses;
        for (size_t i = 0; i < N; i++)
            worst = fmax(worst, fabs(t->grad[i] - want[i] / sample) / (size[i] / sample));
        memset(t->grad, 0, N * sizeof *t->grad);
    }
    CHECK(wrong == 0, "samples are counted, losses averaged, gradients taken");
    CHECK(worst <= 1e-6, "accumulated gradients equal the large batch's within %.1e", worst);
    /* ((1 + tiny) + (big - big)): pairs first, then pairs of pairs; in sequence the tiny one would be lost */
    for (int k = 0; k < 4; k++) {
        t->grad[0] = k == 0 ? 1 : k == 1 ? 0x1p-20f : k == 2 ? 0x1p30f : -0x1p30f;
        sd_accumulate(a, 0, 1);
    }
    sd_accumulator_finish(a, &loss);
    CHECK(t->grad[0] == (1 + 0x1p-20f) / 4, "a binary tree over the index: %a", (double)t->grad[0]);
    CHECK(sd_accumulator_finish(a, &loss) == 0 && loss == 0 && t->grad[0] == 0, "nothing taken: nothing");
    for (size_t i = 0; i < N; i++)
        t->grad[i] = (float)i;
    CHECK(fabs(sd_trainables_norm(t, 1, t->grad)
               - sqrt(28 * 28 + 29 * 29 + 30 * 30 + 31 * 31 + 32 * 32 + 33 * 33 + 34 * 34 + 35 * 35 + 36 * 36))
              < 1e-9,
          "norm of a group");
    sd_scope_close(s);
    return check_done();
}
