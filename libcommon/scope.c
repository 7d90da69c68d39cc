/* scope.c - memory that dies with a scope. */
#include "diag_private.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

struct block {
    struct block *next;
};
struct cleanup {
    struct cleanup *next;
    void (*f)(void *);
    void *argument;
};
struct sd_scope {
    struct block *blocks;
    struct cleanup *cleanups;
};
static struct sd_scope root;    /* what a NULL scope means */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct sd_scope *
sd_scope_open(void)
{
    struct sd_scope *s = calloc(1, sizeof *s);

    if (!s)
        sd_die("memory", "no room for a scope");
    return s;
}

static void
run_cleanups(struct sd_scope *s)
{
    struct cleanup *c;

    while ((c = s->cleanups)) {
        s->cleanups = c->next;
        c->f(c->argument);
    }
}

void
sd_scope_close(struct sd_scope *s)
{
    struct block *b;

    if (!s)
        return;
    run_cleanups(s);
    while ((b = s->blocks)) {
        s->blocks = b->next;
        free(b);
    }
    free(s);
}

void *
sd_alloc(struct sd_scope *s, size_t bytes)
{
    const size_t extra = sizeof(struct block) + ALIGN - 1;
    struct block *b = bytes <= PTRDIFF_MAX - extra ? calloc(1, bytes + extra) : NULL;

    if (!b)
        sd_die("memory", "%zu bytes wanted, not there", bytes);
    if (!s)
        s = &root;
    pthread_mutex_lock(&lock);
    b->next = s->blocks;
    s->blocks = b;
    pthread_mutex_unlock(&lock);
    return (void *)(((uintptr_t)(b + 1) + ALIGN - 1) / ALIGN * ALIGN);
}

void *
sd_alloc_array(struct sd_scope *s, size_t count, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(count, size, &bytes))
        sd_die("memory", "%zu times %zu bytes wanted, not there", count, size);
    return sd_alloc(s, bytes);
}

char *
sd_strndup(struct sd_scope *s, const char *text, size_t length)
{
    char *copy = sd_alloc(s, length + 1);

    memcpy(copy, text, length);
    return copy;
}

char *
sd_strdup(struct sd_scope *s, const char *text)
{
    return sd_strndup(s, text, strlen(text));
}

char *
sd_sprintf(struct sd_scope *s, const char *format, ...)
{
    va_list ap;
    char *text, *copy;
    int n;

    va_start(ap, format);
    n = vasprintf(&text, format, ap);
    va_end(ap);
    if (n < 0)
        sd_die("memory", "no room for a text");
    copy = sd_strndup(s, text, (size_t)n);
    free(text);
    return copy;
}

void
sd_on_close(struct sd_scope *s, void (*f)(void *), void *argument)
{
    struct cleanup *c = sd_alloc(s, sizeof *c);

    if (!s)
        s = &root;
    c->f = f;
    c->argument = argument;
    pthread_mutex_lock(&lock);
    c->next = s->cleanups;
    s->cleanups = c;
    pthread_mutex_unlock(&lock);
}

void
sd_root_close(void)
{
    run_cleanups(&root);
}
