/* prompt.c - prompts: weights, BREAK, chunks, <lora:...>. */
#include "model/prompt.h"
#include "model/tokenizer_text.h"

#include <stdlib.h>
#include <string.h>

enum {
    COMMA_REACH = 20,       /* so many ids back a comma may lie that the end of a full chunk is moved behind */
    PARTS_MAX = 16384       /* each bracket multiplies all parts since: their number is bounded */
};

/* Python's \s and \w */
static bool
is_space(int32_t c)
{
    return sd_codepoint_class(c) == SD_CLASS_SPACE || (c >= 0x1C && c <= 0x1F);
}

static bool
is_word(int32_t c)
{
    return c == '_' || sd_codepoint_class(c) == SD_CLASS_LETTER || sd_codepoint_class(c) == SD_CLASS_NUMBER;
}

static const char *
utf8(struct sd_scope *s, const int32_t *at, size_t count)
{
    char *text = sd_alloc(s, 4 * count + 1);
    size_t n = 0;

    for (size_t i = 0; i < count; i++)
        n += (size_t)sd_codepoint_write(at[i], text + n);
    return text;
}

/* A whole text as a number, spaces around it allowed. */
static int
parse_number(const char *text, double *value)
{
    char *end;

    if (strpbrk(text, "xXpPnN"))        /* strtod's hexadecimal numbers, infinities and NaN are none here */
        return -1;
    *value = strtod(text, &end);
    if (end == text)
        return -1;
    return end[strspn(end, " \t\r\n")] ? -1 : 0;
}

/* --- weights --- */

struct parser {
    struct sd_scope *scope;
    struct sd_prompt_items *items;
    size_t room;
    size_t *open[2], opened[2];     /* items before each open ( and [ */
};

static void
push(struct parser *p, const char *text, double weight)
{
    struct sd_prompt_items *v = p->items;

    if (v->count == p->room) {
        struct sd_prompt_item *more = sd_alloc_array(p->scope, p->room = 2 * p->room + 16, sizeof *more);

        if (v->count)
            memcpy(more, v->item, v->count * sizeof *more);
        v->item = more;
    }
    v->item[v->count++] = (struct sd_prompt_item){ text, weight, false };
}

static void
multiply(struct parser *p, size_t from, double factor)
{
    for (size_t i = from; i < p->items->count; i++)
        p->items->item[i].weight *= factor;
}

/* A run of text, cut at \s*\bBREAK\b\s*. */
static void
push_text(struct parser *p, const int32_t *at, size_t count)
{
    static const char word[] = "BREAK";
    size_t start = 0;

    for (size_t i = 0; i + 5 <= count; i++) {
        size_t k = 0, before, after = i + 5;

        while (k < 5 && at[i + k] == word[k])
            k++;
        if (k < 5 || (i && is_word(at[i - 1])) || (after < count && is_word(at[after])))
            continue;
        for (before = i; before > start && is_space(at[before - 1]); before--)
            ;
        while (after < count && is_space(at[after]))
            after++;
        push(p, utf8(p->scope, at + start, before - start), 1);
        push(p, word, -1);
        start = after;
        i = after - 1;
    }
    push(p, utf8(p->scope, at + start, count - start), 1);
}

/* Length of  : spaces number spaces )  at at[0], else 0; *number is where the number is. */
static size_t
weight_length(const int32_t *at, size_t count, size_t number[2])
{
    size_t i = 1;

    while (i < count && is_space(at[i]))
        i++;
    number[0] = i;
    if (i < count && (at[i] == '+' || at[i] == '-'))
        i++;
    number[1] = i;
    while (i < count && (at[i] == '.' || (at[i] >= '0' && at[i] <= '9')))
        i++;
    if (i == number[1])
        return 0;
    number[1] = i;
    while (i < count && is_space(at[i]))
        i++;
    return i < count && at[i] == ')' ? i + 1 : 0;
}

/* The token at at[0]: its length, or 0 with sd_fail. */
static size_t
next_token(struct parser *p, const int32_t *at, size_t count)
{
    static const char literal[] = "()[]\\";
    size_t n = 1, number[2];

    switch (*at) {
    case '\\':              /* an escaped bracket is itself; a lone \ is nothing */
        n = count > 1 && at[1] && at[1] < 128 && strchr(literal, at[1]) ? 2 : 1;
        push(p, utf8(p->scope, at + 1, n - 1), 1);
        return n;
    case '(': case '[':
        p->open[*at == '['][p->opened[*at == '[']++] = p->items->count;
        return 1;
    case ')': case ']':
        if (!p->opened[*at == ']'])
            break;
        multiply(p, p->open[*at == ']'][--p->opened[*at == ']']], *at == ')' ? 1.1 : 1 / 1.1);
        return 1;
    case ':':
        if ((n = weight_length(at, count, number)) && p->opened[0]) {
            const char *text = utf8(p->scope, at + number[0], number[1] - number[0]);
            double weight;

            if (parse_number(text, &weight) < 0) {
                sd_fail("weight \"%s\" is not a number", text);
                return 0;
            }
            multiply(p, p->open[0][--p->opened[0]], weight);
            return n;
        }
        n = n ? n : 1;
        break;
    default:
        while (n < count && !(at[n] < 128 && at[n] && strchr("\\()[]:", at[n])))
            n++;
    }
    push_text(p, at, n);
    return n;
}

static void
merge_equal(struct sd_scope *s, struct sd_prompt_items *v)
{
    size_t n = 0;

    for (size_t i = 0, k; i < v->count; i = k) {
        struct sd_prompt_item merged = v->item[i];
        size_t bytes = 0;
        char *text;

        for (k = i; k < v->count && v->item[k].weight == merged.weight; k++)
            bytes += strlen(v->item[k].text);
        if (k > i + 1) {
            merged.text = text = sd_alloc(s, bytes + 1);
            for (size_t j = i; j < k; j++)
                text = stpcpy(text, v->item[j].text);
        }
        merged.is_break = merged.weight == -1 && !strcmp(merged.text, "BREAK");     /* "(BREAK:-1)" too, upstream */
        v->item[n++] = merged;
        k = k > i ? k : i + 1;      /* a weight that is no number equals nothing */
    }
    v->count = n;
}

int
sd_prompt_parse(struct sd_scope *s, const char *text, struct sd_prompt_items *items)
{
    struct sd_scope *scratch = sd_scope_open();
    struct parser p = { .scope = s, .items = items };
    struct sd_codepoints c;
    int status;

    *items = (struct sd_prompt_items){ 0 };
    status = sd_codepoints(scratch, text, strlen(text), &c);
    for (int i = 0; !status && i < 2; i++)
        p.open[i] = sd_alloc_array(scratch, c.count + 1, sizeof *p.open[i]);
    for (size_t i = 0, n; !status && i < c.count; i += n)
        if (!(n = next_token(&p, c.at + i, c.count - i)))
            status = -1;
        else if (items->count > PARTS_MAX)
            status = sd_fail("more than %d parts between brackets", PARTS_MAX);
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; !status && i < p.opened[k]; i++)
            multiply(&p, p.open[k][i], k ? 1 / 1.1 : 1.1);
    if (!items->count)
        push(&p, "", 1);
    merge_equal(s, items);
    sd_scope_close(scratch);
    return status;
}

/* --- chunks --- */

struct chunker {
    const struct sd_tokenizer *t;
    struct sd_scope *scope;
    struct sd_prompt *p;
    int room;           /* chunks allocated: always one more than are closed */
    int used;           /* ids in the chunk being filled, after its bos */
    int comma;          /* place of the last comma in it, -1: none */
};

static void
reserve(struct chunker *c, int chunks)
{
    size_t length = (size_t)c->p->length, old = (size_t)c->p->chunks + 1;
    int32_t *ids;
    float *weights;

    if (chunks <= c->room)
        return;
    c->room = 2 * chunks;
    ids = sd_alloc_array(c->scope, (size_t)c->room * length, sizeof *ids);
    weights = sd_alloc_array(c->scope, (size_t)c->room * length, sizeof *weights);
    if (c->p->input_ids) {
        memcpy(ids, c->p->input_ids, old * length * sizeof *ids);
        memcpy(weights, c->p->weights, old * length * sizeof *weights);
    }
    c->p->input_ids = ids;
    c->p->weights = weights;
}

/* Frame and pad the chunk being filled; another one begins. */
static void
close_chunk(struct chunker *c)
{
    int length = c->p->length;
    int32_t *ids = c->p->input_ids + (size_t)c->p->chunks * (size_t)length;
    float *weights = c->p->weights + (size_t)c->p->chunks * (size_t)length;
    int end = 1;

    ids[0] = c->t->bos;
    weights[0] = 1;
    for (int i = c->used + 1; i < length; i++) {
        ids[i] = c->t->eos;
        weights[i] = 1;
    }
    while (ids[end] != c->t->eos)       /* where the text itself has an end token, padding begins behind it */
        end++;
    for (int i = end + 1; i < length; i++)
        if (c->t->pad != c->t->eos)
            ids[i] = c->t->pad;
    reserve(c, c->p->chunks + 2);
    c->p->chunks++;
    c->used = 0;
    c->comma = -1;
}

static void
put(struct chunker *c, int32_t id, double weight)
{
    size_t at = (size_t)c->p->chunks * (size_t)c->p->length + (size_t)++c->used;

    c->p->input_ids[at] = id;
    c->p->weights[at] = (float)weight;
    c->p->tokens++;
    if (weight != 1)
        c->p->weighted = true;
}

/* A chunk is full and a comma lies near its end: what follows the comma moves to the next chunk. */
static void
move_behind_comma(struct chunker *c)
{
    int from = c->comma + 1, count = c->used - from;
    size_t at = (size_t)c->p->chunks * (size_t)c->p->length + (size_t)from + 1;
    int32_t ids[COMMA_REACH];
    float weights[COMMA_REACH];

    memcpy(ids, c->p->input_ids + at, (size_t)count * sizeof *ids);
    memcpy(weights, c->p->weights + at, (size_t)count * sizeof *weights);
    c->used = from;
    close_chunk(c);
    at = (size_t)c->p->chunks * (size_t)c->p->length + 1;
    memcpy(c->p->input_ids + at, ids, (size_t)count * sizeof *ids);
    memcpy(c->p->weights + at, weights, (size_t)count * sizeof *weights);
    c->used = count;
}

static int
put_ids(struct chunker *c, const struct sd_ids *ids, double weight)
{
    int inner = c->p->length - 2;

    for (size_t i = 0; i < ids->count; i++) {
        if (ids->id[i] == c->t->comma)
            c->comma = c->used;
        else if (c->used == inner && c->comma >= 0 && c->used - c->comma <= COMMA_REACH)
            move_behind_comma(c);
        if (c->used == inner)
            close_chunk(c);
        if (ids->span[i] > inner)
            return sd_fail("a token of %d vectors, a chunk has room for %d", ids->span[i], inner);
        if (ids->span[i] > 1 && c->used + ids->span[i] > inner)
            close_chunk(c);
        for (int32_t k = ids->span[i]; k > 1; k--)
            put(c, ids->id[i++], weight);
        put(c, ids->id[i], weight);
    }
    return 0;
}

static int
encode_plain(struct chunker *c, const char *text)
{
    struct sd_ids ids;

    if (sd_tokenizer_encode((struct sd_tokenizer *)c->t, c->scope, text, strlen(text), &ids) < 0)
        return -1;
    c->p->chunks = 1;
    c->p->tokens = ids.count;
    c->p->cut = sd_tokenizer_frame(c->t, &ids, c->p->input_ids);
    c->p->cut_text = sd_tokenizer_decode(c->t, c->scope, ids.id + ids.count - c->p->cut, c->p->cut);
    for (int i = 0; i < c->p->length; i++)
        c->p->weights[i] = 1;
    return 0;
}

int
sd_prompt_encode(struct sd_tokenizer *t, struct sd_scope *s, enum sd_prompt_syntax syntax, const char *text,
                 struct sd_prompt *prompt)
{
    struct chunker c = { .t = t, .scope = s, .p = prompt, .comma = -1 };
    struct sd_prompt_item whole = { text, 1, false };
    struct sd_prompt_items items = { 1, &whole };

    *prompt = (struct sd_prompt){ .length = t->model_max_length, .cut_text = "" };
    reserve(&c, 1);
    if (syntax == SD_PROMPT_PLAIN)
        return encode_plain(&c, text);
    if (syntax == SD_PROMPT_A1111 && sd_prompt_parse(s, text, &items) < 0)
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        struct sd_ids ids;

        if (items.item[i].is_break) {
            close_chunk(&c);
            continue;
        }
        if (sd_tokenizer_encode(t, s, items.item[i].text, strlen(items.item[i].text), &ids) < 0
                || put_ids(&c, &ids, items.item[i].weight) < 0)
            return -1;
    }
    if (c.used || !prompt->chunks)
        close_chunk(&c);
    return 0;
}

void
sd_prompt_pad(const struct sd_tokenizer *t, struct sd_scope *s, struct sd_prompt *prompt, int chunks)
{
    struct chunker c = { .t = t, .scope = s, .p = prompt, .room = prompt->chunks + 1, .comma = -1 };

    while (prompt->chunks < chunks)
        close_chunk(&c);
}

/* --- networks --- */

static int
network_number(const char *whole, const char *text, double *value)
{
    return parse_number(text, value) < 0 ? sd_fail("<%s>: \"%s\" is not a number", whole, text) : 0;
}

/* The arguments of a lora: positional ones first to last, an item with one = by its name. */
static int
lora_arguments(struct sd_scope *s, const char *whole, char *arguments, struct sd_prompt_network *n)
{
    const char *positional[4] = { "" }, *named[3] = { NULL };
    static const char *const names[] = { "te", "unet", "dyn" };
    int count = 0;
    double dyn = 0;

    for (char *item = arguments, *next; item; item = next) {
        char *equal;

        if ((next = strchr(item, ':')))
            *next++ = 0;
        if (!(equal = strchr(item, '=')) || strchr(equal + 1, '=')) {
            if (count == 4)
                return sd_fail("<%s>: \"%s\" is one argument too many", whole, item);
            positional[count++] = item;
            continue;
        }
        *equal = 0;
        for (int i = 0; ; i++)
            if (i == 3)
                return sd_fail("<%s>: \"%s\" is not known; te, unet and dyn are", whole, item);
            else if (!strcmp(item, names[i])) {
                named[i] = equal + 1;
                break;
            }
    }
    n->name = sd_strdup(s, positional[0]);
    for (int i = 0; i < 3; i++)
        named[i] = named[i] ? named[i] : i + 1 < count ? positional[i + 1] : NULL;
    if (named[0] && network_number(whole, named[0], &n->te) < 0)
        return -1;
    n->unet = n->te;
    if (named[1] && network_number(whole, named[1], &n->unet) < 0)
        return -1;
    if (named[2]
        && (network_number(whole, named[2], &dyn) < 0 || dyn < 0 || dyn > 1 << 20 || dyn != (double)(int64_t)dyn))
        return sd_fail("<%s>: dyn=%s is not a rank", whole, named[2]);
    n->dyn = (int64_t)dyn;
    return *n->name ? 0 : sd_fail("<%s>: no name", whole);
}

int
sd_prompt_networks(struct sd_scope *s, const char *text, const char **rest, struct sd_prompt_network **networks,
                   size_t *count)
{
    struct sd_scope *scratch = sd_scope_open();
    struct sd_codepoints c;
    size_t kept = 0, room = 0, n = 0, last = 0;
    int status = sd_codepoints(scratch, text, strlen(text), &c);

    *networks = NULL;
    for (size_t i = 0; !status && i < c.count; i++)
        if (c.at[i] == '>')
            last = i;
        else
            room += c.at[i] == '<';
    if (room)
        *networks = sd_alloc_array(s, room, sizeof **networks);
    for (size_t i = 0; !status && i < c.count; i++) {
        size_t colon = i + 1, end = c.count;

        while (c.at[i] == '<' && colon < c.count && is_word(c.at[colon]))
            colon++;
        if (c.at[i] == '<' && colon > i + 1 && colon < c.count && c.at[colon] == ':' && colon < last)
            for (end = colon + 1; c.at[end] != '>'; end++)
                ;
        if (end == c.count || end == colon + 1) {
            c.at[kept++] = c.at[i];
            continue;
        }
        {
            struct sd_prompt_network *net = *networks + n++;
            const char *whole = utf8(scratch, c.at + i + 1, end - i - 1);
            const char *arguments = utf8(scratch, c.at + colon + 1, end - colon - 1);

            *net = (struct sd_prompt_network){ .kind = utf8(s, c.at + i + 1, colon - i - 1), .te = 1, .unet = 1 };
            if (!strcmp(net->kind, "lora") || !strcmp(net->kind, "lyco"))
                status = lora_arguments(s, whole, (char *)arguments, net);
            else
                net->name = sd_strndup(s, arguments, strcspn(arguments, ":"));
        }
        i = end;
    }
    *rest = status ? NULL : utf8(s, c.at, kept);
    *count = status ? 0 : n;
    sd_scope_close(scratch);
    return status;
}
