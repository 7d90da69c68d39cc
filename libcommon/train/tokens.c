/* tokens - new tokens and their first values. */
#include "tokens.h"

#include "random.h"

#include <math.h>
#include <string.h>

struct sd_tokens *
sd_tokens_add(struct sd_scope *s, const struct sd_list *list, int64_t vectors, struct sd_tokenizer *tokenizer,
              struct sd_model *model, struct sd_trainables *t)
{
    struct sd_tokens *k = sd_alloc(s, sizeof *k);
    int64_t width = model->text_config.hidden_size;

    if (tokenizer && tokenizer->length != model->text_config.vocab_size)
        return sd_fail_null("the tokenizer has %d tokens, the text encoder %d: new ones would not line up",
                            tokenizer->length, model->text_config.vocab_size);
    k->token = sd_alloc_array(s, list->count, sizeof *k->token);
    for (size_t i = 0; i < list->count; i++) {
        const char *equals = strchr(list->item[i], '=');
        struct sd_token *x = &k->token[k->count++];

        x->name = equals ? sd_strndup(s, list->item[i], (size_t)(equals - list->item[i])) : list->item[i];
        x->words = equals ? equals + 1 : NULL;
        x->vectors = vectors;
        x->first_row = k->vectors;
        k->vectors += vectors;
        if (tokenizer && sd_tokenizer_add(tokenizer, x->name, (int)vectors) < 0)
            return NULL;
    }
    k->rows = sd_trainables_add(t, "tokens", "tokens", 2, (int64_t[]){ k->vectors, width });
    return k;
}

static double
spread(const float *row, int64_t n)     /* standard deviation, unbiased */
{
    double sum = 0, squares = 0;

    for (int64_t i = 0; i < n; i++)
        sum += row[i];
    for (int64_t i = 0; i < n; i++)
        squares += (row[i] - sum / (double)n) * (row[i] - sum / (double)n);
    return sqrt(squares / (double)(n - 1));
}

/* Random rows whose mean spread is that of the table's rows. */
static void
start_random(float *rows, int64_t n, int64_t width, double target, uint64_t seed, uint64_t token)
{
    double mean = 0;

    sd_random_normal(rows, (size_t)(n * width), seed, SD_FOR_INIT, token, 1);
    for (int64_t r = 0; r < n; r++)
        mean += spread(rows + r * width, width) / (double)n;
    for (int64_t i = 0; i < n * width; i++)
        rows[i] = (float)(rows[i] * (target / mean));
}

/* One word a row; where there are more rows than words, the words again with a little noise. */
static int
start_words(struct sd_token *x, float *rows, int64_t width, struct sd_param *table, struct sd_tokenizer *tokenizer,
            double target, uint64_t seed, uint64_t token)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_ids ids;
    float *noise = sd_alloc_array(s, (size_t)(x->vectors * width), sizeof *noise);
    int status = sd_tokenizer_encode(tokenizer, s, x->words, strlen(x->words), &ids);

    if (status == 0 && (ids.count == 0 || ids.count > (size_t)x->vectors))
        status = sd_fail("%s=%s: the words are %zu tokens, --num-vectors is %lld", x->name, x->words, ids.count,
                         (long long)x->vectors);
    sd_random_normal(noise, (size_t)(x->vectors * width), seed, SD_FOR_INIT, token, 2);
    for (int64_t r = 0; status == 0 && r < x->vectors; r++) {
        int64_t id = ids.id[(size_t)r % ids.count];

        if (id >= table->shape[0]) {
            status = sd_fail("%s=%s: cannot start from a new token", x->name, x->words);
            break;
        }
        sd_param_convert((real *)(rows + r * width), table, (size_t)(id * width), (size_t)width);
        for (int64_t i = 0; (size_t)r >= ids.count && i < width; i++)
            rows[r * width + i] += (float)(0.1 * target) * noise[r * width + i];
    }
    sd_scope_close(s);
    return status;
}

int
sd_tokens_start(struct sd_tokens *k, struct sd_model *model, struct sd_tokenizer *tokenizer,
                const struct sd_embedding *init, uint64_t seed)
{
    struct sd_clip_text *text = sd_model_text_encoder(model);
    int64_t width = model->text_config.hidden_size, V = model->text_config.vocab_size;
    struct sd_param *table;
    double target = 0;
    float *row;

    if (!text)
        return -1;
    if (!(table = sd_weights_get(text->weights, "text_model.embeddings.token_embedding.weight", 2,
                                 (int64_t[]){ V, width })))
        return -1;
    if (init) {
        if (k->count != 1)
            return sd_fail("one token can start from a file, this run has %zu", k->count);
        if (init->vectors != k->vectors || init->width != width)
            return sd_fail("[%lld, %lld], expected [%lld, %lld]", (long long)init->vectors, (long long)init->width,
                           (long long)k->vectors, (long long)width);
        memcpy(k->rows->value, init->values, (size_t)(k->vectors * width) * sizeof(float));
        return 0;
    }
    row = sd_alloc_array(NULL, (size_t)width, sizeof *row);
    for (int64_t v = 0; v < V; v++) {
        sd_param_convert((real *)row, table, (size_t)(v * width), (size_t)width);
        target += spread(row, width) / (double)V;
    }
    for (size_t i = 0; i < k->count; i++) {
        float *rows = (float *)k->rows->value + k->token[i].first_row * width;

        if (!k->token[i].words)
            start_random(rows, k->token[i].vectors, width, target, seed, i);
        else if (start_words(&k->token[i], rows, width, table, tokenizer, target, seed, i) < 0)
            return -1;
    }
    return 0;
}

bool
sd_tokens_in(const struct sd_tokens *k, size_t token, int64_t vocabulary, const int32_t *ids, size_t count)
{
    int64_t first = vocabulary + k->token[token].first_row;

    for (size_t i = 0; i < count; i++)
        if (ids[i] >= first && ids[i] < first + k->token[token].vectors)
            return true;
    return false;
}
