/* tokenizer.c - text to ids: CLIP's byte-level BPE, as the tokenizers library computes it. */
#include "model/tokenizer_tables.h"

#include <string.h>
#include <xxhash.h>

/* Bytes 33-126, 161-172, 174-255 are themselves; the other 68, ascending, are U+0100, U+0101 ... */
int32_t
sd_byte_codepoint(int byte)
{
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)
        return byte;
    return 256 + (byte <= 32 ? byte : byte <= 160 ? 33 + byte - 127 : 67);
}

static int
codepoint_byte(int32_t c)
{
    if (c < 256)
        return c;
    c -= 256;
    return c <= 32 ? c : c < 67 ? c - 33 + 127 : c == 67 ? 173 : -1;
}

/* --- tables --- */

static struct sd_pair *
pair_slot(const struct sd_tokenizer_tables *v, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    uint32_t i = (uint32_t)(h >> 32) & v->pair_mask;

    while (v->pairs[i].id >= 0 && (v->pairs[i].left != left || v->pairs[i].right != right))
        i = (i + 1) & v->pair_mask;
    return v->pairs + i;
}

static int32_t
vocab_id(const struct sd_tokenizer_tables *v, const char *text)
{
    const json_t *id = json_object_get(v->vocab, text);

    return id ? (int32_t)json_integer_value(id) : -1;
}

static int
build_vocabulary(struct sd_tokenizer *t, json_t *vocab)
{
    struct sd_tokenizer_tables *v = t->tables;
    const char *text;
    json_t *id;
    char letter[16];

    json_object_foreach(vocab, text, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= 1 << 24)
            return sd_fail("vocabulary: \"%s\": expected an id from 0 to %d", text, (1 << 24) - 1);
        if (json_integer_value(id) >= v->texts)
            v->texts = (int32_t)json_integer_value(id) + 1;
    }
    if (!v->texts)
        return sd_fail("vocabulary: empty");
    v->vocab = vocab;
    v->text = sd_alloc_array(v->scope, (size_t)v->texts, sizeof *v->text);
    json_object_foreach(vocab, text, id) {
        const char **slot = v->text + json_integer_value(id);

        if (*slot)
            return sd_fail("vocabulary: \"%s\" and \"%s\" have the same id %lld", *slot, text,
                           (long long)json_integer_value(id));
        *slot = text;
    }
    for (int byte = 0; byte < 256; byte++) {
        int n = sd_codepoint_write(sd_byte_codepoint(byte), letter);

        letter[n] = 0;
        v->byte[0][byte] = vocab_id(v, letter);
        strcpy(letter + n, "</w>");
        v->byte[1][byte] = vocab_id(v, letter);
    }
    t->length = v->texts;
    t->comma = v->byte[1][','];
    return 0;
}

int
sd_tokenizer_build(struct sd_tokenizer *t, json_t *vocab, const struct sd_merge *merges, size_t count)
{
    struct sd_tokenizer_tables *v = t->tables;
    struct sd_scope *scratch;

    if (build_vocabulary(t, vocab) < 0)
        return -1;
    for (v->pair_mask = 63; v->pair_mask < 2 * count; v->pair_mask = 2 * v->pair_mask + 1)
        ;
    v->pairs = sd_alloc_array(v->scope, (size_t)v->pair_mask + 1, sizeof *v->pairs);
    for (uint32_t i = 0; i <= v->pair_mask; i++)
        v->pairs[i].id = -1;
    v->words = sd_alloc_array(v->scope, SD_WORD_SLOTS, sizeof *v->words);
    scratch = sd_scope_open();
    for (size_t rank = 0; rank < count; rank++) {
        const char *parts[] = { merges[rank].left, merges[rank].right,
                                sd_sprintf(scratch, "%s%s", merges[rank].left, merges[rank].right) };
        int32_t id[3];

        for (int i = 0; i < 3; i++)
            if ((id[i] = vocab_id(v, parts[i])) < 0) {
                sd_fail("merge %zu, \"%s %s\": \"%s\" is not in the vocabulary", rank + 1, parts[0], parts[1],
                        parts[i]);
                sd_scope_close(scratch);
                return -1;
            }
        *pair_slot(v, id[0], id[1]) = (struct sd_pair){ id[0], id[1], (int32_t)rank, id[2] };
    }
    sd_scope_close(scratch);
    return 0;
}

struct sd_added_token *
sd_tokenizer_added(const struct sd_tokenizer *t, const char *text)
{
    for (size_t i = 0; i < t->tables->added_count; i++)
        if (!strcmp(t->tables->added[i].text, text))
            return t->tables->added + i;
    return NULL;
}

int32_t
sd_tokenizer_id(const struct sd_tokenizer *t, const char *token)
{
    const struct sd_added_token *a = sd_tokenizer_added(t, token);

    return a ? a->id : vocab_id(t->tables, token);
}

int
sd_tokenizer_set_added(struct sd_tokenizer *t, const char *text, int32_t id, int32_t span, bool normalised)
{
    struct sd_tokenizer_tables *v = t->tables;
    struct sd_added_token *a = sd_tokenizer_added(t, text);
    struct sd_codepoints key;

    if (sd_codepoints(v->scope, text, strlen(text), &key) < 0)
        return sd_fail_prefix("added token");
    if (!key.count)
        return sd_fail("added token %d is empty", id);
    if (normalised)
        key = sd_codepoints_normalise(v->scope, key.at, key.count);
    if (!a) {
        if (v->added_count == v->added_room) {
            struct sd_added_token *more = sd_alloc_array(v->scope, 2 * v->added_room + 8, sizeof *more);

            if (v->added_count)
                memcpy(more, v->added, v->added_count * sizeof *more);
            v->added = more;
            v->added_room = 2 * v->added_room + 8;
        }
        a = v->added + v->added_count++;
        a->text = sd_strdup(v->scope, text);
    }
    a->id = id;
    a->span = span;
    a->normalised = normalised;
    a->key = key;
    v->first[normalised][key.at[0] & 255] = 1;
    if (id + span > t->length)
        t->length = id + span;
    return 0;
}

int32_t
sd_tokenizer_add(struct sd_tokenizer *t, const char *token, int count)
{
    struct sd_scope *scratch = sd_scope_open();
    struct sd_codepoints key;
    int32_t first = t->length, status = -1;

    if (count < 1 || count > 4096) {
        sd_fail("token \"%s\": %d vectors, expected 1 to 4096", token, count);
        goto out;
    }
    if (sd_codepoints(scratch, token, strlen(token), &key) < 0) {
        sd_fail_prefix("token");
        goto out;
    }
    key = sd_codepoints_normalise(scratch, key.at, key.count);
    if (!key.count || key.at[0] == ' ' || key.at[key.count - 1] == ' ') {
        sd_fail("token \"%s\": empty, or a space at an end", token);
        goto out;
    }
    for (int i = 0; i < count; i++) {
        const char *name = i ? sd_sprintf(scratch, "%s_%d", token, i) : token;

        if (sd_tokenizer_id(t, name) >= 0) {
            sd_fail("token \"%s\" exists already, with id %d", name, sd_tokenizer_id(t, name));
            goto out;
        }
        for (size_t a = 0; !i && a < t->tables->added_count; a++) {
            const struct sd_added_token *other = t->tables->added + a;

            if (other->normalised && other->key.count == key.count
                    && !memcmp(other->key.at, key.at, key.count * sizeof *key.at)) {
                sd_fail("token \"%s\" cannot be told from \"%s\", which exists already", token, other->text);
                goto out;
            }
        }
    }
    for (int i = 0; i < count; i++)
        sd_tokenizer_set_added(t, i ? sd_sprintf(scratch, "%s_%d", token, i) : token, first + i, i ? 1 : count, true);
    status = first;
out:
    sd_scope_close(scratch);
    return status;
}

int
sd_tokenizer_set_pad(struct sd_tokenizer *t, const char *token)
{
    int32_t id = sd_tokenizer_id(t, token);

    if (id < 0)
        return sd_fail("pad token \"%s\" is not in the vocabulary", token);
    t->pad = id;
    return sd_tokenizer_added(t, token) ? 0 : sd_tokenizer_set_added(t, token, id, 1, false);
}

/* --- a word --- */

struct symbol { int32_t id, previous, next; };      /* id -1: merged into its left neighbour; ends are -1 */
struct candidate { uint64_t order; int32_t id; };   /* rank, then place; the id it would give */
struct heap { struct candidate *at; size_t count; };

static void
heap_push(struct heap *h, struct candidate c)
{
    size_t i = h->count++;

    for (; i && h->at[(i - 1) / 2].order > c.order; i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = c;
}

static struct candidate
heap_pop(struct heap *h)
{
    struct candidate top = h->at[0], last = h->at[--h->count];
    size_t i = 0;

    for (size_t child; (child = 2 * i + 1) < h->count; i = child) {
        if (child + 1 < h->count && h->at[child + 1].order < h->at[child].order)
            child++;
        if (h->at[child].order >= last.order)
            break;
        h->at[i] = h->at[child];
    }
    h->at[i] = last;
    return top;
}

static void
offer(const struct sd_tokenizer_tables *v, struct heap *h, const struct symbol *symbols, int32_t at)
{
    const struct sd_pair *p;

    if (at < 0 || symbols[at].next < 0)
        return;
    p = pair_slot(v, symbols[at].id, symbols[symbols[at].next].id);
    if (p->id >= 0)
        heap_push(h, (struct candidate){ (uint64_t)p->rank << 32 | (uint32_t)at, p->id });
}

/* Merge the pair of lowest rank, leftmost first, until none is left: n log n, since a prompt may be one long word.
 * Returns the number of ids, at most `bytes`. */
static size_t
merge_word(const struct sd_tokenizer_tables *v, const char *word, size_t bytes, int32_t *ids)
{
    struct sd_scope *scratch = sd_scope_open();
    struct symbol *symbols = sd_alloc_array(scratch, bytes, sizeof *symbols);
    struct heap heap = { sd_alloc_array(scratch, 3 * bytes, sizeof *heap.at), 0 };
    int32_t n = 0;
    size_t count = 0;

    for (size_t i = 0; i < bytes; i++) {
        int32_t id = v->byte[i + 1 == bytes][(unsigned char)word[i]];

        if (id < 0 && (id = v->unk) < 0)
            continue;
        symbols[n] = (struct symbol){ id, n - 1, n + 1 };
        n++;
    }
    if (n)
        symbols[n - 1].next = -1;
    for (int32_t i = 0; i < n; i++)
        offer(v, &heap, symbols, i);
    while (heap.count) {
        struct candidate c = heap_pop(&heap);
        int32_t at = (int32_t)(uint32_t)c.order, right = symbols[at].next;

        if (symbols[at].id < 0 || right < 0 || pair_slot(v, symbols[at].id, symbols[right].id)->id != c.id)
            continue;           /* one of the two has been merged since */
        symbols[at].id = c.id;
        symbols[at].next = symbols[right].next;
        symbols[right].id = -1;
        if (symbols[at].next >= 0)
            symbols[symbols[at].next].previous = at;
        offer(v, &heap, symbols, symbols[at].previous);
        offer(v, &heap, symbols, at);
    }
    for (int32_t i = n ? 0 : -1; i >= 0; i = symbols[i].next)
        ids[count++] = symbols[i].id;
    sd_scope_close(scratch);
    return count;
}

static size_t
word_ids(const struct sd_tokenizer_tables *v, const char *word, size_t bytes, int32_t *ids)
{
    struct sd_word *w = v->words + XXH3_64bits(word, bytes) % SD_WORD_SLOTS;
    size_t count;

    if (w->bytes == bytes && !memcmp(w->text, word, bytes)) {
        memcpy(ids, w->id, w->ids * sizeof *ids);
        return w->ids;
    }
    count = merge_word(v, word, bytes, ids);
    if (bytes <= SD_WORD_BYTES && count <= SD_WORD_IDS) {
        w->bytes = (uint8_t)bytes;
        w->ids = (uint8_t)count;
        memcpy(w->text, word, bytes);
        memcpy(w->id, ids, count * sizeof *ids);
    }
    return count;
}

/* --- a text --- */

struct encoder {
    struct sd_tokenizer_tables *v;
    struct sd_scope *scope, *scratch;   /* of the result, of the work */
    struct sd_ids *ids;
    size_t room;
};

static void
reserve(struct encoder *e, size_t more)
{
    size_t room = e->ids->count + more;
    int32_t *id, *span;

    if (room <= e->room)
        return;
    room = room < 2 * e->room ? 2 * e->room : room + 64;
    id = sd_alloc_array(e->scope, room, sizeof *id);
    span = sd_alloc_array(e->scope, room, sizeof *span);
    if (e->ids->count) {
        memcpy(id, e->ids->id, e->ids->count * sizeof *id);
        memcpy(span, e->ids->span, e->ids->count * sizeof *span);
    }
    e->ids->id = id;
    e->ids->span = span;
    e->room = room;
}

/* The longest added token of that kind that starts at at[0]. */
static const struct sd_added_token *
added_at(const struct sd_tokenizer_tables *v, bool normalised, const int32_t *at, size_t count)
{
    const struct sd_added_token *best = NULL;

    if (!v->first[normalised][*at & 255])
        return NULL;
    for (size_t i = 0; i < v->added_count; i++) {
        const struct sd_added_token *a = v->added + i;

        if (a->normalised == normalised && a->key.count <= count && (!best || a->key.count > best->key.count)
                && !memcmp(a->key.at, at, a->key.count * sizeof *at))
            best = a;
    }
    return best;
}

static bool
starts_with(const int32_t *at, size_t count, const char *text)
{
    for (size_t i = 0; text[i]; i++)
        if (i == count || at[i] != text[i])
            return false;
    return true;
}

/* Length of the piece that starts at at[0], which is no space; the first alternative that fits wins:
 *   <|startoftext|>  <|endoftext|>  's 't 're 've 'm 'll 'd  letters  one number  what is none of these nor space
 * The first two are reached by other case only ("<|EndOfText|>"); they fall into "<|", the word and "|>", of which this
 * returns the first and leaves in *also the lengths of the others. */
static size_t
piece_length(const int32_t *at, size_t count, size_t also[2])
{
    static const char *const specials[] = { "<|startoftext|>", "<|endoftext|>" };
    static const char *const endings[] = { "'s", "'t", "'re", "'ve", "'m", "'ll", "'d" };
    enum sd_class class = sd_codepoint_class(*at);
    size_t n = 1;

    for (int i = 0; *at == '<' && i < 2; i++)
        if (starts_with(at, count, specials[i])) {
            also[0] = strlen(specials[i]) - 4;
            also[1] = 2;
            return 2;
        }
    for (int i = 0; *at == '\'' && i < 7; i++)
        if (starts_with(at, count, endings[i]))
            return strlen(endings[i]);
    if (class != SD_CLASS_NUMBER)
        while (n < count && sd_codepoint_class(at[n]) == class)
            n++;
    return n;
}

static void
encode_piece(struct encoder *e, const int32_t *at, size_t count)
{
    char *word = sd_alloc(e->scratch, 4 * count);
    size_t bytes = 0;

    for (size_t i = 0; i < count; i++)
        bytes += (size_t)sd_codepoint_write(at[i], word + bytes);
    reserve(e, bytes);
    count = word_ids(e->v, word, bytes, e->ids->id + e->ids->count);
    for (size_t i = 0; i < count; i++)
        e->ids->span[e->ids->count++] = 1;
}

static void
encode_words(struct encoder *e, const int32_t *at, size_t count)
{
    for (size_t i = 0; i < count; ) {
        size_t also[2] = { 0, 0 }, n;

        if (sd_codepoint_class(at[i]) == SD_CLASS_SPACE) {
            i++;
            continue;
        }
        n = piece_length(at + i, count - i, also);
        encode_piece(e, at + i, n);
        i += n;
        for (int k = 0; k < 2 && also[k]; k++) {
            encode_piece(e, at + i, also[k]);
            i += also[k];
        }
    }
}

static void
encode_added(struct encoder *e, const struct sd_added_token *a)
{
    reserve(e, (size_t)a->span);
    for (int32_t i = 0; i < a->span; i++) {
        e->ids->span[e->ids->count] = i ? 0 : a->span;
        e->ids->id[e->ids->count++] = a->id + i;
    }
}

/* Cut out the added tokens, leftmost first; what lies between goes on: raw text to normalising, normalised text to
 * words. */
static void
encode_segment(struct encoder *e, bool normalised, const int32_t *at, size_t count)
{
    size_t start = 0;

    for (size_t i = 0; i <= count; i++) {
        const struct sd_added_token *a = i < count ? added_at(e->v, normalised, at + i, count - i) : NULL;

        if (i < count && !a)
            continue;
        if (normalised) {
            encode_words(e, at + start, i - start);
        } else if (i > start) {
            struct sd_codepoints text = sd_codepoints_normalise(e->scratch, at + start, i - start);

            encode_segment(e, true, text.at, text.count);
        }
        if (a) {
            encode_added(e, a);
            start = i + a->key.count;
            i = start - 1;
        }
    }
}

int
sd_tokenizer_encode(struct sd_tokenizer *t, struct sd_scope *s, const char *text, size_t bytes, struct sd_ids *ids)
{
    struct encoder e = { t->tables, s, sd_scope_open(), ids, 0 };
    struct sd_codepoints raw;
    int status;

    *ids = (struct sd_ids){ 0 };
    reserve(&e, bytes / 3 + 1);
    status = sd_codepoints(e.scratch, text, bytes, &raw);
    if (!status)
        encode_segment(&e, false, raw.at, raw.count);
    sd_scope_close(e.scratch);
    return status;
}

size_t
sd_tokenizer_frame(const struct sd_tokenizer *t, const struct sd_ids *ids, int32_t *framed)
{
    size_t length = (size_t)t->model_max_length, n = ids->count < length - 2 ? ids->count : length - 2;

    framed[0] = t->bos;
    if (n)
        memcpy(framed + 1, ids->id, n * sizeof *framed);
    framed[n + 1] = t->eos;
    for (size_t i = n + 2; i < length; i++)
        framed[i] = t->pad;
    return ids->count - n;
}

char *
sd_tokenizer_decode(const struct sd_tokenizer *t, struct sd_scope *s, const int32_t *ids, size_t count)
{
    struct sd_scope *scratch = sd_scope_open();
    char *out = sd_alloc(scratch, 1);
    size_t room = 1, n = 0;

    for (size_t i = 0; i < count; i++) {
        const char *text = NULL;
        struct sd_codepoints c;
        size_t bytes;
        bool vocabulary = ids[i] >= 0 && ids[i] < t->tables->texts && t->tables->text[ids[i]], ends;

        for (size_t a = 0; a < t->tables->added_count; a++)
            if (t->tables->added[a].id == ids[i]) {
                text = t->tables->added[a].text;
                vocabulary = false;
            }
        if (!text)
            text = vocabulary ? t->tables->text[ids[i]] : "?";
        bytes = strlen(text);
        ends = !vocabulary || (bytes > 4 && !strcmp(text + bytes - 4, "</w>"));
        if (vocabulary && ends)
            bytes -= 4;
        if (n + bytes + 2 > room) {
            char *more = sd_alloc(scratch, room = 2 * room + bytes + 64);

            memcpy(more, out, n);
            out = more;
        }
        if (vocabulary && !sd_codepoints(scratch, text, bytes, &c))
            for (size_t k = 0; k < c.count; k++)
                out[n++] = (char)codepoint_byte(c.at[k]);
        else
            n = (size_t)((char *)memcpy(out + n, text, bytes) + bytes - out);
        if (ends && i + 1 < count)
            out[n++] = ' ';
        out[n] = 0;
    }
    out = sd_utf8_repair(s, out, n);
    sd_scope_close(scratch);
    return out;
}
