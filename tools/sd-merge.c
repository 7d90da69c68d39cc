/* sd-merge: adapters into a checkpoint; adapters joined; adapters and embeddings from one form into another. */
#include "hash.h"
#include "json.h"
#include "model/checkpoint.h"
#include "model/embedding.h"
#include "opt.h"
#include "threads.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *model_name, *output, *format, *save_dtype;
static bool verify;
static const struct sd_opt options[] = {
    { 0, "model", SD_OPT_TEXT, &model_name, 0, 0, "MODEL",
      "merge into this model: a folder, a checkpoint file, or org/name" },
    { 0, "output", SD_OPT_TEXT, &output, 0, 0, "FILE",
      "what to write; a folder for a model that is one, and for peft" },
    { 0, "format", SD_OPT_CHOICE, &format, 0, 0, SD_LORA_FORMATS "|a1111",
      "of adapters (kohya) or of an embedding: a1111, comfy or diffusers (diffusers)" },
    { 0, "save-dtype", SD_OPT_CHOICE, &save_dtype, 0, 0, "f32|f16|bf16", "of the numbers written (as in the input)" },
    { 0, "verify", SD_OPT_FLAG, &verify, 0, 0, NULL, "read the output again and compare its weights (off)" },
    { 0 }
};

struct input {
    const char *path;
    double weight;
    char hash[SD_SHA256_HEX];
    struct sd_lora *lora;
};

struct run {
    struct sd_scope *scope;
    struct input *input;
    size_t count, pairs;
    const char **pair;              /* metadata of the output */
};

/* FILE[:weight]; a name that is there as it stands has no weight in it. */
static struct input
operand(struct sd_scope *s, const char *text)
{
    const char *colon = strrchr(text, ':');
    struct input in = { .path = text, .weight = 1 };
    char *end;

    if (!colon || access(text, F_OK) == 0)
        return in;
    errno = 0;
    in.weight = strtod(colon + 1, &end);
    in.path = sd_strndup(s, text, (size_t)(colon - text));
    if (end == colon + 1 || *end || !isfinite(in.weight))
        sd_usage(text, "expected FILE or FILE:WEIGHT, a number");
    return in;
}

/* ---- metadata ---------------------------------------------------------------------------------------------------- */

static void
put(struct run *r, const char *key, const char *value)
{
    r->pair[r->pairs++] = key;
    r->pair[r->pairs++] = value;
}

/* What a folder of PEFT's holds. */
static const char *const parts[] = { "adapter_config.json", "adapter_model.safetensors", "unet/adapter_config.json",
                                     "unet/adapter_model.safetensors", "text_encoder/adapter_config.json",
                                     "text_encoder/adapter_model.safetensors" };
enum { PARTS = sizeof parts / sizeof *parts };

/* A plan reads no more than it must: its hash has the length of one. */
static void
hash_input(struct run *r, struct input *in)
{
    struct sd_sha256 *h = sd_sha256_new(r->scope);
    struct stat st;

    if (sd_shared.plan) {
        snprintf(in->hash, sizeof in->hash, "%0*d", SD_SHA256_HEX - 1, 0);
        return;
    }
    if (stat(in->path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        if (sd_hash_file_cached(in->path, in->hash) < 0)
            sd_die(in->path, "%s", sd_reason());
        return;
    }
    for (int i = 0; i < PARTS; i++) {           /* a folder: the names and hashes of its files */
        const char *path = sd_sprintf(r->scope, "%s/%s", in->path, parts[i]), *line;
        char hex[SD_SHA256_HEX];

        if (access(path, F_OK) != 0)
            continue;
        if (sd_hash_file_cached(path, hex) < 0)
            sd_die(path, "%s", sd_reason());
        line = sd_sprintf(r->scope, "%s  %s\n", hex, parts[i]);
        sd_sha256_update(h, line, strlen(line));
    }
    sd_sha256_hex(h, in->hash);
}

/* What was done, as hashes and numbers. */
static void
put_settings(struct run *r)
{
    static const char *const paths[] = { "model", "output", "config", "verify", "overwrite", "dtype", NULL };
    json_t *settings = sd_options_json(paths), *inputs = json_array();

    for (size_t i = 0; i < r->count; i++)
        json_array_append_new(inputs,
                              json_pack("{s:s, s:f}", "sha256", r->input[i].hash, "weight", r->input[i].weight));
    json_object_set_new(settings, "inputs", inputs);
    put(r, "sd_tools.version", SD_VERSION);
    put(r, "sd_tools.merge", sd_json_dump(r->scope, settings, 0));
    json_decref(settings);
}

static const char *
pair_of(const struct sd_lora *lora, const char *key)
{
    for (size_t i = 0; i < lora->metadata; i++)
        if (strcmp(lora->pair[i][0], key) == 0)
            return lora->pair[i][1];
    return NULL;
}

/* Do all inputs say the same? */
static bool
agreed(const struct run *r, const char *key, const char *value)
{
    for (size_t i = 0; i < r->count; i++) {
        const char *other = pair_of(r->input[i].lora, key);

        if (!other || strcmp(other, value) != 0)
            return false;
    }
    return true;
}

static bool
begins(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/* Of one file, all that stays true is kept; of several, what describes the model they are for. */
static bool
inherited(const struct run *r, const char *key)
{
    static const char *const about_model[] = { "ss_v2",
                                               "ss_base_model_version",
                                               "ss_network_module",
                                               "ss_network_args",
                                               "ss_clip_skip",
                                               "ss_sd_model_name",
                                               "ss_sd_model_hash",
                                               "ss_new_sd_model_hash",
                                               "ss_resolution",
                                               "modelspec.sai_model_spec",
                                               "modelspec.architecture",
                                               "modelspec.implementation",
                                               "modelspec.prediction_type",
                                               "modelspec.resolution" };
    static const char *const false_now[] = { "format",         "lora_adapter_metadata",
                                             "ss_network_dim", "ss_network_alpha",
                                             "sshs_",          "modelspec.hash_sha256",
                                             "modelspec.date", "modelspec.thumbnail",
                                             "sd_tools." };

    for (size_t i = 0; i < sizeof false_now / sizeof *false_now; i++)
        if (begins(key, false_now[i]))
            return false;
    for (size_t i = 0; i < sizeof about_model / sizeof *about_model; i++)
        if (strcmp(key, about_model[i]) == 0)
            return true;
    return r->count == 1;
}

/* A1111 hides files whose family it cannot tell: the width of the text that they read does. */
static int64_t
text_width(const struct sd_lora *lora)
{
    for (size_t i = 0; i < lora->count; i++)
        if (strstr(lora->layer[i].path, ".attn2.to_k") || strstr(lora->layer[i].path, ".attn2.to_v")
            || strstr(lora->layer[i].path, "self_attn."))
            return lora->layer[i].in;
    return 0;
}

static void
put_kohya(struct run *r, const struct sd_lora *lora, enum sd_dtype dtype)
{
    const struct sd_lora *first = r->input[0].lora;
    bool v2 = text_width(lora) == 1024, family = text_width(lora) == 768 || v2;
    int64_t rank;
    double alpha;

    for (size_t i = 0; i < first->metadata; i++)
        if (inherited(r, first->pair[i][0]) && agreed(r, first->pair[i][0], first->pair[i][1]))
            put(r, first->pair[i][0], first->pair[i][1]);
    if (family && !agreed(r, "ss_v2", v2 ? "True" : "False"))
        put(r, "ss_v2", v2 ? "True" : "False");
    if (family && !pair_of(first, "ss_base_model_version"))
        put(r, "ss_base_model_version", v2 ? "sd_v2" : "sd_v1");
    if (!pair_of(first, "ss_network_module"))
        put(r, "ss_network_module", "networks.lora");
    if (!pair_of(first, "ss_network_args"))
        put(r, "ss_network_args", "{}");
    sd_lora_dim(lora, dtype, &rank, &alpha);
    put(r, "ss_network_dim", sd_sprintf(r->scope, "%lld", (long long)rank));
    put(r, "ss_network_alpha", sd_sprintf(r->scope, "%.9g", alpha));
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* What a run takes: the factors, then what is made of them, then what is read again. */
struct plan {
    size_t factors;                 /* numbers in the inputs */
    size_t held, piece, verify;     /* bytes of memory: all the time; while writing; while reading again */
    uint64_t read, written;
    double flops;
    size_t layers;
    struct sd_checkpoint_plan *model;
};

static uint64_t
size_of(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
}

static void
plan_inputs(struct run *r, struct plan *p)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct input *in = &r->input[i];

        p->read += size_of(in->path);
        for (int k = 0; k < PARTS; k++)
            p->read += size_of(sd_sprintf(r->scope, "%s/%s", in->path, parts[k]));
        p->held += in->lora ? in->lora->held : 0;
        for (size_t k = 0; in->lora && k < in->lora->count; k++) {
            const struct sd_lora_layer *l = &in->lora->layer[k];

            p->factors += (size_t)(l->rank * (l->in * l->kh * l->kw + l->out));
        }
    }
}

/* Is this a plan, which is printed, or is there a run to come, for which there is room? */
static bool
planned(struct run *r, const struct plan *p)
{
    size_t most = p->piece > p->verify ? p->piece : p->verify, peak = p->held + most;
    const struct sd_checkpoint_plan *m = p->model;
    json_t *o, *unmatched = json_array();

    (void)r;
    if (sd_shared.memory && !sd_shared.plan && peak > (size_t)sd_shared.memory)
        sd_die("--memory", "%.1f MiB are needed, %.1f MiB allowed", (double)peak / (1 << 20),
               (double)sd_shared.memory / (1 << 20));
    for (size_t i = 0; m && i < m->unmatched; i++)
        json_array_append_new(unmatched, json_string(m->path[i]));
    o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:o}", "peak_bytes", (json_int_t)peak,
                  "weights_bytes", (json_int_t)(p->factors * sizeof(float)), "packed_bytes", (json_int_t)p->held,
                  "activations_bytes", (json_int_t)most, "arena_bytes", (json_int_t)most, "flops", p->flops,
                  "bytes_read", (json_int_t)(p->read + (verify ? p->written : 0)), "bytes_written",
                  (json_int_t)p->written, "inputs", (json_int_t)r->count, "layers", (json_int_t)p->layers, "unmatched",
                  unmatched);
    if (o && m) {
        json_object_set_new(o, "tensors", json_integer((json_int_t)m->tensors));
        json_object_set_new(o, "tensors_changed", json_integer((json_int_t)m->changed));
    }
    if (!o)
        sd_die("memory", "no room for the plan");
    if (sd_shared.plan)
        puts(sd_json_dump(r->scope, o, 0));
    json_decref(o);
    return sd_shared.plan;
}

/* ---- adapters ---------------------------------------------------------------------------------------------------- */

static struct sd_lora *
load_joined(struct run *r)
{
    struct sd_lora **all = sd_alloc_array(r->scope, r->count, sizeof *all), *joined;
    double *weight = sd_alloc_array(r->scope, r->count, sizeof *weight);

    for (size_t i = 0; i < r->count; i++) {
        struct input *in = &r->input[i];

        if (!(in->lora = sd_lora_load(r->scope, in->path)))
            sd_die(in->path, "%s", sd_reason());
        hash_input(r, in);
        sd_note(1, "%s: %s, %zu layers", in->path, in->lora->dialect, in->lora->count);
        all[i] = in->lora;
        weight[i] = in->weight;
    }
    if (!(joined = sd_lora_join(r->scope, all, weight, r->count)))
        sd_die(NULL, "%s", sd_reason());
    return joined;
}

static enum sd_dtype
dtype_or(enum sd_dtype otherwise)
{
    if (!save_dtype)
        return otherwise;
    return strcmp(save_dtype, "f32") == 0 ? SD_F32 : strcmp(save_dtype, "f16") == 0 ? SD_F16 : SD_BF16;
}

static int
merge_adapters(struct run *r)
{
    struct sd_lora *lora = load_joined(r);
    enum sd_dtype dtype = dtype_or(lora->dtype);
    enum sd_lora_format to = sd_lora_format(format ? format : "kohya");
    struct plan plan = { .layers = lora->count };
    struct sd_lora_size size;
    double worst;

    r->pair = sd_alloc_array(r->scope, 2 * r->input[0].lora->metadata + 32, sizeof *r->pair);
    put_kohya(r, lora, dtype);
    put_settings(r);
    if (sd_lora_size(lora, to, dtype, r->pair, &size) < 0)
        sd_die(output, "%s", sd_reason());
    plan_inputs(r, &plan);
    plan.held += r->count > 1 ? lora->held : 0;
    plan.piece = size.memory + SD_SAFETENSORS_PIECE;
    plan.written = size.written;
    for (size_t i = 0; i < lora->count && verify; i++)
        if (dtype != SD_F32)
            plan.verify += sizeof(float)
                           * (size_t)(lora->layer[i].rank
                                      * (lora->layer[i].in * lora->layer[i].kh * lora->layer[i].kw + lora->layer[i].out));
    if (planned(r, &plan))
        return SD_OK;
    if (sd_lora_save(lora, output, to, dtype, r->pair) < 0)
        sd_die(output, "%s", sd_reason());
    if (verify) {
        if (sd_lora_verify(lora, output, &worst) < 0)
            sd_die(output, "was written, but reads back differently: %s", sd_reason());
        if (!(worst <= 0.005))
            sd_warn(output, "%s keeps its weights to within %.2g %% only; --save-dtype f32 keeps them whole",
                    dtype == SD_F32 ? "f32" : dtype == SD_F16 ? "f16" : "bf16", 100 * worst);
        sd_note(0, "%s: %zu layers read back, largest relative difference %.2g", output, lora->count, worst);
    }
    return SD_OK;
}

/* ---- a model ----------------------------------------------------------------------------------------------------- */

static void
put_base(struct run *r, struct sd_model *m)
{
    char *hex = sd_alloc(r->scope, SD_SHA256_HEX), *text = sd_alloc(r->scope, SD_SHA256_HEX);

    if (sd_shared.plan) {
        snprintf(hex, SD_SHA256_HEX, "%0*d", SD_SHA256_HEX - 1, 0);
        strcpy(text, hex);
    } else if (m->single_file ? sd_hash_file_cached(m->path, hex) < 0
                       : sd_weights_hash(sd_model_unet(m)->weights, hex) < 0
                             || sd_weights_hash(sd_model_text_encoder(m)->weights, text) < 0)
        sd_die(model_name, "%s", sd_reason());
    put(r, m->single_file ? "sd_tools.base" : "sd_tools.base_unet", hex);
    if (!m->single_file)
        put(r, "sd_tools.base_text_encoder", text);
}

static int
merge_model(struct run *r)
{
    struct sd_checkpoint c = { .lora = load_joined(r), .convert = save_dtype != NULL, .dtype = dtype_or(SD_F32) };
    struct sd_checkpoint_plan m;
    struct plan plan = { .layers = c.lora->count, .model = &m };
    size_t tensors;

    if (!(c.model = sd_model_open(r->scope, model_name, NULL)))
        sd_die(model_name, "%s", sd_reason());
    if (!sd_shared.plan && sd_checkpoint_check(&c) < 0)
        sd_die(model_name, "%s", sd_reason());
    r->pair = sd_alloc_array(r->scope, 32, sizeof *r->pair);
    put_base(r, c.model);
    put_settings(r);
    c.metadata = r->pair;
    if (sd_checkpoint_plan(r->scope, &c, &m) < 0)
        sd_die(model_name, "%s", sd_reason());
    plan_inputs(r, &plan);
    plan.held += r->count > 1 ? c.lora->held : 0;
    plan.piece = m.memory + SD_SAFETENSORS_PIECE;
    plan.read += m.read;
    plan.written = m.written;
    plan.flops = m.flops;
    if (planned(r, &plan)) {
        if (!m.unmatched)
            return SD_OK;
        sd_warn(model_name, "%zu layers of the adapters are not in it, or of another shape, the first is %s",
                m.unmatched, m.path[0]);
        return SD_FAILED;
    }
    if (sd_checkpoint_save(&c, output) < 0)
        sd_die(output, "%s", sd_reason());
    if (verify) {
        if (sd_checkpoint_verify(&c, output, &tensors) < 0)
            sd_die(output, "was written, but reads back differently: %s", sd_reason());
        sd_note(0, "%s: %zu tensors read back, %zu layers changed", output, tensors, c.lora->count);
    }
    return SD_OK;
}

/* ---- embeddings -------------------------------------------------------------------------------------------------- */

/* One tensor, or the names that embeddings have; anything with "lora" in a name is none. */
static bool
is_embedding(struct sd_scope *s, const char *path)
{
    static const char *const names[] = { "emb_params", "clip_l", "clip_g", "text_encoders_0" };
    struct stat st;
    struct sd_safetensors *f = stat(path, &st) == 0 && S_ISREG(st.st_mode) ? sd_safetensors_open(s, path) : NULL;

    for (size_t i = 0; f && i < sd_safetensors_count(f); i++)
        if (strstr(sd_safetensors_at(f, i)->name, "lora") || strstr(sd_safetensors_at(f, i)->name, "lycoris"))
            return false;
    for (size_t i = 0; f && i < sizeof names / sizeof *names; i++)
        if (sd_safetensors_find(f, names[i]))
            return true;
    return f && (sd_safetensors_count(f) == 1 || begins(sd_safetensors_at(f, 0)->name, "string_to_param."));
}

static int
convert_embedding(struct run *r)
{
    struct input *in = &r->input[0];
    const char *to = format ? format : "diffusers";
    enum sd_embedding_format layout = strcmp(to, "diffusers") == 0 ? SD_EMBEDDING_DIFFUSERS : SD_EMBEDDING_A1111;
    struct sd_embedding *e, *again;

    if (r->count > 1 || in->weight != 1)
        sd_usage(in->path, "an embedding: converted one at a time, without a weight");
    if (model_name)
        sd_usage(in->path, "an embedding has no place in a model's weights");
    if (strcmp(to, "peft") == 0)
        sd_usage("--format", "peft has no form for embeddings, expected a1111, comfy or diffusers");
    if (!(e = sd_embedding_load(r->scope, in->path)))
        sd_die(in->path, "%s", sd_reason());
    hash_input(r, in);
    r->pair = sd_alloc_array(r->scope, 32, sizeof *r->pair);
    put_settings(r);
    if (sd_shared.plan || sd_shared.memory) {
        struct plan plan = { .held = sizeof(float) * (size_t)(e->vectors * e->width), .piece = SD_SAFETENSORS_PIECE };

        plan.factors = plan.held / sizeof(float);
        plan_inputs(r, &plan);
        if (sd_embedding_size(e, layout, dtype_or(e->dtype), r->pair, &plan.written) < 0)
            sd_die(in->path, "%s", sd_reason());
        if (planned(r, &plan))
            return SD_OK;
    }
    if (sd_embedding_save(e, output, layout, dtype_or(e->dtype), r->pair) < 0)
        sd_die(output, "%s", sd_reason());
    if (verify) {
        if (!(again = sd_embedding_load(r->scope, output)) || !sd_embedding_equal(e, again, dtype_or(e->dtype)))
            sd_die(output, "was written, but reads back differently%s%s", again ? "" : ": ", again ? "" : sd_reason());
        sd_note(0, "%s: %lld vectors of %lld read back", output, (long long)e->vectors, (long long)e->width);
    }
    return SD_OK;
}

int
main(int argc, char **argv)
{
    struct run r = { .scope = sd_scope_open() };
    bool embedding = false;
    int status;

    sd_threads_yield(argv);
    sd_options(&argc, &argv, options, SD_OPT_COMPUTE | SD_OPT_OVERWRITE,
               "[--model MODEL] --output FILE file[:weight] ...",
               "merges adapters into models, joins and converts adapters and embeddings");
    if (strcmp(sd_shared.device, "auto") != 0 && strcmp(sd_shared.device, "cpu") != 0)
        sd_usage("--device", "%s: weights are merged on the CPU", sd_shared.device);
    if (*sd_shared.dtype && strcmp(sd_shared.dtype, "f32") != 0)
        sd_usage("--dtype", "%s: sums are made in f32; --save-dtype is what is written", sd_shared.dtype);
    if ((!output || !*output) && !sd_shared.plan)
        sd_usage("--output", "what is to be written?");
    if (argc < 2)
        sd_usage(NULL, "no adapter named");
    if (model_name && format)
        sd_usage("--format", "is of adapters; with --model the output is a model of the same layout");
    r.count = (size_t)argc - 1;
    r.input = sd_alloc_array(r.scope, r.count, sizeof *r.input);
    for (size_t i = 0; i < r.count; i++) {
        r.input[i] = operand(r.scope, argv[i + 1]);
        embedding |= is_embedding(r.scope, r.input[i].path);
    }
    if (output)
        sd_output_refuse(output, sd_shared.overwrite);
    if (!embedding && format && strcmp(format, "a1111") == 0)
        sd_usage("--format", "a1111 is of embeddings; A1111 reads adapters in kohya's form");
    status = embedding ? convert_embedding(&r) : model_name ? merge_model(&r) : merge_adapters(&r);
    sd_scope_close(r.scope);
    return sd_finish(status);
}
