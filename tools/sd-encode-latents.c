/* sd-encode-latents - records with pixel_values to the same with latents: the VAE's posterior, made once for a picture
 * and kept in a cache.  What is encoded and how it is named is in libcommon/diffusion/latents.c; here are the order of
 * the records and which are left out. */
#include "compute.h"
#include "device_bytes.h"
#include "diffusion/latents.h"
#include "model/model_tokenizer.h"
#include "opt.h"
#include "record.h"
#include "threads.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *model_name, *vae_name, *tokenizer_name, *cache_folder, *shard, *salt, *cache_scope = "machine";
static int64_t batch_size = 1, tile;
static bool text, keep_pixels;

static const struct sd_opt options[] = {
    { 0, "model", SD_OPT_TEXT, &model_name, 0, 0, "M", "the model whose VAE encodes" },
    { 0, "vae", SD_OPT_TEXT, &vae_name, 0, 0, "DIR|FILE", "this VAE instead of the model's" },
    { 0, "cache", SD_OPT_TEXT, &cache_folder, 0, 0, "DIR", "where what is encoded is kept ($XDG_CACHE_HOME/sd-tools)" },
    { 0, "batch-size", SD_OPT_INT, &batch_size, 1, 4096, "N", "pictures of one size encoded at once (1)" },
    { 0, "tile", SD_OPT_INT, &tile, 0, 1 << 20, "PIXELS",
      "encode larger pictures in overlapping tiles: other numbers, less memory (0: never)" },
    { 0, "text", SD_OPT_FLAG, &text, 0, 0, NULL, "add the text encoder's states of the captions" },
    { 0, "tokenizer", SD_OPT_TEXT, &tokenizer_name, 0, 0, "DIR|FILE", "with --text: instead of the model's tokenizer" },
    { 0, "keep-pixels", SD_OPT_FLAG, &keep_pixels, 0, 0, NULL, "leave pixel_values in the records" },
    { 0, "shard", SD_OPT_TEXT, &shard, 0, 0, "I/N", "only the records I, I + N, I + 2 N ... counted from 0" },
    { 0, "salt", SD_OPT_TEXT, &salt, 0, 0, "TEXT", "another cache in the same folder" },
    { 0, "cache-scope", SD_OPT_CHOICE, &cache_scope, 0, 0, "machine|portable",
      "share entries with machines that compute other bits: portable (machine)" },
    { 0 }
};

/* A record that waits for its latents, or behind one that does. */
struct item {
    struct sd_record *record;
    const char *subject;
    struct sd_latents_picture picture;
    size_t same;                        /* where the first with this picture waits: its own place, or before it */
    bool ready;                         /* the record is as it goes out */
};

/* A picture that would be encoded, for --plan. */
struct wanted {
    char key[SD_SHA256_HEX];
    int64_t height, width;
};

static struct run {
    struct sd_scope *scope;
    struct sd_model *model;
    struct sd_latents *latents;
    struct sd_captions *captions;
    struct sd_weights *weights[2];
    int factor, channels;
    int64_t position, shard, shards;
    struct sd_scope *line_scope;        /* of all that waits */
    struct item *line;
    size_t waiting;
    size_t records, encoded, found, captions_made, captions_found, written, left_out, late;
    struct wanted *wanted;              /* with --plan */
    size_t wanted_count, wanted_room;
    int64_t chunks_wanted;
} run;

/* ---- one record ------------------------------------------------------------------------------------------------ */

static int
take_picture(const struct sd_record *r, struct sd_latents_picture *p)
{
    struct sd_record_tensor t;
    int found = sd_record_tensor(r, "pixel_values", &t);

    if (found < 0)
        return -1;
    if (!found)
        return sd_fail(sd_record_text(r, "vae_hash") ? "no pixel_values: already encoded" : "no pixel_values");
    if (strcmp(t.dtype, "U8") || t.ndim != 3 || t.shape[2] != 3)
        return sd_fail("pixel_values: expected U8 [height, width, 3], found %s %s", t.dtype,
                       sd_shape_text(run.scope, t.ndim, t.shape));
    p->pixels = t.data;
    p->height = t.shape[0];
    p->width = t.shape[1];
    return sd_latents_key(run.latents, p);
}

static void
set_floats(struct sd_record *r, const char *key, const float *values, int ndim, const int64_t *shape)
{
    struct sd_record_tensor t = { .dtype = "F32", .ndim = ndim, .data = values, .bytes = sizeof *values };

    for (int i = 0; i < ndim; i++) {
        t.shape[i] = shape[i];
        t.bytes *= (size_t)shape[i];
    }
    sd_record_set_tensor(r, key, &t);
}

static int
add_mask(struct sd_scope *s, struct sd_record *r, const struct sd_latents_picture *p)
{
    const int64_t shape[2] = { p->height / run.factor, p->width / run.factor };
    struct sd_record_tensor t;
    int found = sd_record_tensor(r, "mask", &t);
    float *mask;

    if (found < 1)
        return found;
    if (strcmp(t.dtype, "U8") || t.ndim != 2 || t.shape[0] != p->height || t.shape[1] != p->width)
        return sd_fail("mask: expected U8 [%" PRId64 ", %" PRId64 "], found %s %s", p->height, p->width, t.dtype,
                       sd_shape_text(s, t.ndim, t.shape));
    mask = sd_alloc_array(s, (size_t)(shape[0] * shape[1]), sizeof *mask);
    sd_latent_mask(mask, t.data, p->height, p->width, run.factor);
    set_floats(r, "latent_mask", mask, 2, shape);
    return 0;
}

static int
add_text(struct sd_scope *s, struct sd_record *r)
{
    const char *caption = sd_record_text(r, "caption");
    struct sd_caption_states states;
    int found;

    if (!caption)
        return sd_fail("no caption, and --text wants one");
    found = sd_caption_encode(run.captions, s, caption, !sd_shared.plan, &states);
    if (found == -2)
        sd_die(sd_record_text(r, "source"), "%s", sd_reason());
    if (found < 0)
        return -1;
    if (sd_shared.plan) {
        if (!found && states.chunks > run.chunks_wanted)
            run.chunks_wanted = states.chunks;
    } else if (!states.states) {
        return sd_fail("text_states are not finite");
    } else {
        set_floats(r, "text_states", states.states, 2, (int64_t[]){ states.rows, states.width });
        sd_record_set_text(r, "text_encoder_hash", sd_captions_hash(run.captions));
    }
    *(found ? &run.captions_found : &run.captions_made) += 1;
    return 0;
}

static void
finish_record(struct sd_record *r, const struct sd_latents_picture *p)
{
    const int64_t shape[3] = { run.channels, p->height / run.factor, p->width / run.factor };

    set_floats(r, "latents_mean", p->mean, 3, shape);
    set_floats(r, "latents_logvar", p->logvar, 3, shape);
    sd_record_set_text(r, "vae_hash", sd_latents_vae_hash(run.latents));
    if (!keep_pixels)
        sd_record_remove(r, "pixel_values");
}

/* ---- records that wait ------------------------------------------------------------------------------------------ */

enum { LINE = 4 };                      /* batches that may wait for one to be full */

static void
wait_in_line(const struct sd_record *r, const char *subject, const struct sd_latents_picture *p, bool ready)
{
    struct item *x = &run.line[run.waiting];
    struct sd_record_tensor t;

    if (!run.waiting)
        run.line_scope = sd_scope_open();
    *x = (struct item){ .picture = *p, .same = run.waiting, .ready = ready };
    x->record = sd_record_copy(run.line_scope, r);
    x->subject = sd_strdup(run.line_scope, subject);
    if (!ready && sd_record_tensor(x->record, "pixel_values", &t) == 1)
        x->picture.pixels = t.data;
    for (size_t i = 0; i < run.waiting && !ready && x->same == run.waiting; i++)
        if (!run.line[i].ready && !strcmp(run.line[i].picture.key, p->key))
            x->same = i;
    run.waiting++;
}

static bool
to_encode(size_t i)
{
    return !run.line[i].ready && run.line[i].same == i && !run.line[i].picture.mean;
}

static bool
alike(size_t i, size_t j)
{
    const struct sd_latents_picture *a = &run.line[i].picture, *b = &run.line[j].picture;

    return a->height == b->height && a->width == b->width;
}

/* Would waiting fill some size's last batch? */
static bool
worth_waiting(void)
{
    for (size_t i = 0; i < run.waiting; i++) {
        size_t count = 0;

        for (size_t j = 0; j < run.waiting; j++)
            count += to_encode(j) && alike(i, j);
        if (to_encode(i) && count % (size_t)batch_size)
            return run.waiting < LINE * (size_t)batch_size;
    }
    return false;
}

/* The picture at i, and those of its size behind it, as many as a batch takes. */
static void
encode_batch(size_t i)
{
    struct sd_latents_picture **p = sd_alloc_array(run.line_scope, (size_t)batch_size, sizeof *p);
    const char *subject = run.line[i].subject;
    size_t first = i, count = 0;

    for (; i < run.waiting && count < (size_t)batch_size; i++)
        if (to_encode(i) && alike(first, i))
            p[count++] = &run.line[i].picture;
    if (sd_latents_encode(run.latents, run.line_scope, p, count) < 0)
        sd_die(subject, "%s", sd_reason());
}

static void
leave_out(const char *subject)
{
    run.late++;
    if (sd_shared.keep_going)
        sd_warn(subject, "latents are not finite");
    else
        sd_error(subject, "latents are not finite");
}

static void
write_waiting(struct item *x)
{
    const struct item *first = &run.line[x->same];

    if (!x->ready && !first->picture.mean) {
        leave_out(x->subject);
        return;
    }
    if (!x->ready) {
        bool own = first == x;

        *(own ? &run.encoded : &run.found) += 1;
        sd_note(1, "%s: %s", x->subject, own ? "encoded" : "the same picture as before");
        finish_record(x->record, &first->picture);
    }
    sd_record_write(x->record);
    run.written++;
}

/* Encodes and writes all that waits, unless a batch would get fuller. */
static void
settle(bool at_end)
{
    if (!run.waiting || (!at_end && worth_waiting()))
        return;
    for (size_t i = 0; i < run.waiting; i++)
        if (to_encode(i))
            encode_batch(i);
    for (size_t i = 0; i < run.waiting; i++)
        write_waiting(&run.line[i]);
    run.waiting = 0;
    sd_scope_close(run.line_scope);
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void
want(const struct sd_latents_picture *p)
{
    if (run.wanted_count == run.wanted_room) {
        run.wanted_room = run.wanted_room ? 2 * run.wanted_room : 64;
        if (!(run.wanted = realloc(run.wanted, run.wanted_room * sizeof *run.wanted)))
            sd_die("memory", "no room for %zu pictures", run.wanted_room);
    }
    memcpy(run.wanted[run.wanted_count].key, p->key, sizeof p->key);
    run.wanted[run.wanted_count].height = p->height;
    run.wanted[run.wanted_count++].width = p->width;
}

static int
take(struct sd_scope *s, struct sd_record *r)
{
    const char *source = sd_record_text(r, "source");
    const char *subject = source ? source : sd_sprintf(s, "record %" PRId64, run.position);
    struct sd_latents_picture p = { 0 };
    int found;

    if (take_picture(r, &p) < 0 || add_mask(s, r, &p) < 0 || (text && add_text(s, r) < 0))
        return -1;
    if ((found = sd_latents_find(run.latents, s, &p)) < 0)
        sd_die(subject, "%s", sd_reason());
    run.found += found;
    if (sd_shared.plan) {
        if (!found)
            want(&p);
        return 0;
    }
    if (found) {
        sd_note(1, "%s: from the cache", subject);
        finish_record(r, &p);
        if (run.waiting) {
            wait_in_line(r, subject, &p, true);
        } else {
            sd_record_write(r);
            run.written++;
        }
    } else {
        wait_in_line(r, subject, &p, false);
    }
    settle(false);
    return 0;
}

static int
take_one(struct sd_scope *s, struct sd_record *r, void *user)
{
    int status;

    (void)user;
    if (run.position++ % run.shards != run.shard)
        return 0;
    run.records++;
    if ((status = take(s, r)) < 0)
        run.left_out++;
    return status;
}

/* ---- --plan ----------------------------------------------------------------------------------------------------- */

static int
by_key(const void *a, const void *b)
{
    return strcmp(((const struct wanted *)a)->key, ((const struct wanted *)b)->key);
}

/* A picture that comes twice is encoded once. */
static void
forget_twins(void)
{
    size_t kept = 0;

    if (run.wanted_count)
        qsort(run.wanted, run.wanted_count, sizeof *run.wanted, by_key);
    for (size_t i = 0; i < run.wanted_count; i++)
        if (!kept || strcmp(run.wanted[kept - 1].key, run.wanted[i].key) != 0)
            run.wanted[kept++] = run.wanted[i];
        else
            run.found++;
    run.wanted_count = kept;
}

static int
by_size(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;

    return x->height != y->height ? (x->height < y->height ? -1 : 1) : (x->width > y->width) - (x->width < y->width);
}

/* Plans each size there is; the largest step, and the work of all. */
static void
plan_sizes(struct sd_latents_plan *most, double *flops, size_t *pixels)
{
    struct sd_latents_plan p = { 0 };

    if (run.wanted_count)
        qsort(run.wanted, run.wanted_count, sizeof *run.wanted, by_size);
    *most = p;
    for (size_t i = 0, n; i < run.wanted_count; i += n) {
        const struct wanted *w = &run.wanted[i];
        size_t batch, bytes = (size_t)(w->height * w->width * 3);

        for (n = 1; i + n < run.wanted_count && !by_size(w, w + n); n++)
            ;
        batch = n < (size_t)batch_size ? n : (size_t)batch_size;
        if (sd_latents_plan(run.latents, w->height, w->width, batch, &p) < 0)
            sd_die(NULL, "%" PRId64 "x%" PRId64 ": %s", w->width, w->height, sd_reason());
        *flops += p.flops / (double)batch * (double)n;
        most->flops = p.flops > most->flops ? p.flops : most->flops;
        *pixels = bytes > *pixels ? bytes : *pixels;
    }
    most->arena_bytes = p.arena_bytes;
    most->activations_bytes = p.activations_bytes;
}

static void
print_plan(bool counted)
{
    struct sd_device *device = sd_shared_compute()->device;
    struct sd_latents_plan p, words = { 0 };
    struct sd_device_bytes b;
    size_t weights = 0, pixels = 0, peak, encode;
    double flops = 0;
    json_t *o;

    forget_twins();
    encode = run.wanted_count;
    plan_sizes(&p, &flops, &pixels);
    if (run.chunks_wanted && sd_captions_plan(run.captions, run.chunks_wanted, &words) < 0)
        sd_die("--text", "%s", sd_reason());
    for (int i = 0; i < 2; i++)
        if (run.weights[i])
            weights += sizeof(float) * (size_t)sd_weights_elements(run.weights[i]);
    p.arena_bytes = p.arena_bytes > words.arena_bytes ? p.arena_bytes : words.arena_bytes;
    p.activations_bytes = p.activations_bytes > words.activations_bytes ? p.activations_bytes : words.activations_bytes;
    peak = p.arena_bytes + sd_param_bytes_reserved() + (LINE * (size_t)batch_size + 2) * pixels;
    if (device)
        sd_device_bytes_of(&b, device, p.arena_bytes);
    o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "peak_bytes", (json_int_t)peak, "weights_bytes",
                  (json_int_t)weights, "packed_bytes", (json_int_t)sd_param_bytes_reserved(), "activations_bytes",
                  (json_int_t)p.activations_bytes, "arena_bytes", (json_int_t)p.arena_bytes, "flops", p.flops,
                  "total_flops", flops);
    if (o && device) {
        json_object_set_new(o, "peak_bytes", json_integer((json_int_t)sd_device_bytes_sum(&b)));
        json_object_set_new(o, "device", json_loads(sd_device_bytes_json(run.scope, &b), 0, NULL));
    }
    if (o && counted) {
        json_object_set_new(o, "records", json_integer((json_int_t)run.records));
        json_object_set_new(o, "to_encode", json_integer((json_int_t)encode));
        json_object_set_new(o, "cached", json_integer((json_int_t)run.found));
        json_object_set_new(o, "left_out", json_integer((json_int_t)run.left_out));
    }
    if (o && counted && text) {
        json_object_set_new(o, "captions_to_encode", json_integer((json_int_t)run.captions_made));
        json_object_set_new(o, "captions_cached", json_integer((json_int_t)run.captions_found));
    }
    if (!o)
        sd_die("memory", "no room for the plan");
    puts(sd_json_dump(run.scope, o, 0));
    json_decref(o);
}

/* Without records: one batch of the model's own size. */
static int
plan_model_size(void)
{
    int64_t height = run.model ? (int64_t)run.model->unet_config.sample_height * run.factor : 0;
    int64_t width = run.model ? (int64_t)run.model->unet_config.sample_width * run.factor : 0;

    if (!height || !width)
        height = width = 512 / run.factor * run.factor;
    for (int64_t i = 0; i < batch_size; i++) {
        struct sd_latents_picture p = { .height = height, .width = width };

        snprintf(p.key, sizeof p.key, "%" PRId64, i);
        want(&p);
    }
    run.chunks_wanted = text;
    print_plan(false);
    return SD_OK;
}

/* ---- options ---------------------------------------------------------------------------------------------------- */

static void
parse_shard(void)
{
    int end = -1;

    run.shards = 1;
    if (!shard)
        return;
    if (strspn(shard, "0123456789/") != strlen(shard)
        || sscanf(shard, "%9" SCNd64 "/%9" SCNd64 "%n", &run.shard, &run.shards, &end) != 2 || shard[end]
        || run.shards < 1 || run.shard > run.shards)
        sd_usage("--shard", "%s: expected I/N, I from 0 to N", shard);
    run.shard %= run.shards;
}

static void
check_options(void)
{
    if (!model_name && !vae_name)
        sd_usage("--model", "which model? a diffusers directory, a checkpoint file, or org/name");
    if (text && !model_name)
        sd_usage("--text", "needs --model for its text encoder");
    if (tokenizer_name && !text)
        sd_usage("--tokenizer", "has no effect without --text");
    parse_shard();
}

static void
open_model(void)
{
    const struct sd_model_options o = { .vae = vae_name };
    struct sd_encoding e = { .cache = sd_cache_open(run.scope, cache_folder), .salt = salt,
                             .portable = strcmp(cache_scope, "portable") == 0, .tile = tile, .memory = sd_shared.memory,
                             .compute = *sd_shared_compute(), .arena = sd_arena_new() };
    const char *subject = model_name ? model_name : vae_name;
    struct sd_tokenizer *tokenizer;
    struct sd_vae *vae;

    sd_on_close(run.scope, (void (*)(void *))sd_arena_free, e.arena);
    if (model_name && !(run.model = sd_model_open(run.scope, model_name, &o)))
        sd_die(subject, "%s", sd_reason());
    if (!(vae = run.model ? sd_model_vae(run.model) : sd_vae_open(run.scope, vae_name, NULL)))
        sd_die(subject, "%s", sd_reason());
    run.factor = sd_vae_factor(&vae->config);
    run.channels = vae->config.latent_channels;
    run.weights[0] = vae->weights;
    if (tile % (4 * run.factor))
        sd_usage("--tile", "%" PRId64 " pixels: expected a multiple of %d", tile, 4 * run.factor);
    if (!(run.latents = sd_latents_new(run.scope, vae, &e)))
        sd_die(subject, "%s", sd_reason());
    if (!text)
        return;
    if (!(tokenizer = sd_model_tokenizer(run.model, tokenizer_name)))
        sd_die(tokenizer_name ? tokenizer_name : model_name, "%s", sd_reason());
    if (!(run.captions = sd_captions_new(run.scope, run.model, tokenizer, &e)))
        sd_die(model_name, "%s", sd_reason());
    run.weights[1] = sd_model_text_encoder(run.model)->weights;
}

static void
summarize(void)
{
    size_t out = run.left_out + run.late;

    sd_note(0, "%zu record%s: %zu encoded, %zu from the cache%s", run.records, run.records == 1 ? "" : "s", run.encoded,
            run.found, out ? sd_sprintf(run.scope, ", %zu left out", out) : "");
    if (text)
        sd_note(0, "%zu caption%s: %zu encoded, %zu from the cache", run.captions_made + run.captions_found,
                run.captions_made + run.captions_found == 1 ? "" : "s", run.captions_made, run.captions_found);
}

static int
finish(int status)
{
    if (status == SD_FAILED)
        return status;
    settle(true);
    summarize();
    if (!run.written && run.left_out + run.late)
        return SD_FAILED;
    sd_writer_end();
    return status == SD_OK && run.late && !sd_shared.keep_going ? SD_SOME_BAD : status;
}

int
main(int argc, char **argv)
{
    const struct sd_each each = { NULL, false, take_one, NULL };
    struct stat st;
    int status;

    sd_threads_yield(argv);
    run.scope = sd_scope_open();
    sd_options(&argc, &argv, options, SD_OPT_RECORDS | SD_OPT_COMPUTE, "--model M [options] [records ...]",
               "pictures in records to latents, each encoded once");
    sd_shared_compute();
    check_options();
    open_model();
    if (sd_shared.plan && argc < 2 && (fstat(0, &st) || !(S_ISREG(st.st_mode) || S_ISFIFO(st.st_mode)))) {
        status = plan_model_size();
    } else if (sd_shared.plan) {
        status = sd_each(argc, argv, &each);
        if (status != SD_FAILED)
            print_plan(true);
    } else {
        run.line = sd_alloc_array(run.scope, LINE * (size_t)batch_size, sizeof *run.line);
        sd_writer_begin("latents");
        status = finish(sd_each(argc, argv, &each));
    }
    free(run.wanted);
    sd_scope_close(run.scope);
    return sd_finish(status);
}
