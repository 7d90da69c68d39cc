/* device_copies.cpp - what is copied to the emulated device, from it and on it.
 *
 * Kernels and copies of the queue are done when they are asked for.  A card's stream for the writes that go ahead runs at a
 * pace of its own, and here at the worst one: what is written ahead is copied when its side is taken and not before, its place
 * is poisoned meanwhile, and again as soon as the side is released, where the next write might already be. */
#include "device_emulate.h"

#include <string.h>

using namespace sd::emulate;

void
sd_device_write(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    not_recording(d, "sd_device_write");
    d->counts.written += bytes;
    if (!bytes)
        return;
    check_range("sd_device_write", to, bytes);
    check_host("sd_device_write", from);

    door open;

    memcpy(to, from, bytes);
}

static struct side *
side_of(struct sd_device *d, int side, const char *what)
{
    not_recording(d, what);
    if (side < 0 || side >= SD_SIDES)
        sd_bug("emulate", "%s: side %d", what, side);
    return &d->side[side];
}

void
sd_device_write_ahead(struct sd_device *d, int side, void *to, const void *from, size_t bytes)
{
    struct side *s = side_of(d, side, "sd_device_write_ahead");

    if (s->is_taken)
        sd_bug("emulate", "sd_device_write_ahead: side %d is taken, and was not released", side);
    d->counts.written += bytes;
    if (!bytes)
        return;
    check_range("sd_device_write_ahead", to, bytes);
    check_host("sd_device_write_ahead", from);
    s->pending.push_back({ static_cast<unsigned char *>(to), std::string(static_cast<const char *>(from), bytes) });

    door open;

    memset(to, FRESH, bytes);
}

void
sd_device_take(struct sd_device *d, int side)
{
    struct side *s = side_of(d, side, "sd_device_take");
    door open;

    for (const side::write &w : s->pending)
        memcpy(w.to, w.bytes.data(), w.bytes.size());
    s->taken.insert(s->taken.end(), s->pending.begin(), s->pending.end());
    s->pending.clear();
    s->is_taken = true;
}

void
sd_device_release(struct sd_device *d, int side)
{
    struct side *s = side_of(d, side, "sd_device_release");

    if (!s->is_taken)
        sd_bug("emulate", "sd_device_release: side %d was not taken", side);

    door open;

    for (const side::write &w : s->taken)
        memset(w.to, FRESH, w.bytes.size());
    s->taken.clear();
    s->is_taken = false;
}

void
sd_device_read(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    not_recording(d, "sd_device_read");
    sd_device_wait(d);
    if (!bytes)
        return;
    check_range("sd_device_read", from, bytes);
    check_host("sd_device_read", to);

    door open;

    if (dry())
        memset(to, 0, bytes);
    else
        memcpy(to, from, bytes);
}

void
sd_device_copy(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    if (bytes)
        do_or_record(d, dry_line("copy\t%zu", bytes), [to, from, bytes] {
            check_range("sd_device_copy", to, bytes);
            check_range("sd_device_copy", from, bytes);

            door open;

            memmove(to, from, bytes);
        });
}

void
sd_device_fill(struct sd_device *d, void *to, int byte, size_t bytes)
{
    if (bytes)
        do_or_record(d, dry_line("fill\t%zu", bytes), [to, byte, bytes] {
            check_range("sd_device_fill", to, bytes);

            door open;

            memset(to, byte, bytes);
        });
}

void
sd_device_wait(struct sd_device *d)
{
    not_recording(d, "sd_device_wait");
    d->counts.waits++;

    door open;

    check_all_guards();
}

int
sd_device_ask(struct sd_device *d, const void *from, size_t bytes)
{
    const unsigned char *p = static_cast<const unsigned char *>(from);
    int i = 0;

    not_recording(d, "sd_device_ask");
    while (i < SD_ASKED && !d->asked[i].empty())
        i++;
    if (i == SD_ASKED || !bytes || bytes > SD_ASKED_BYTES)
        sd_bug("emulate", "sd_device_ask: %zu bytes, %d of %d places are taken", bytes, i, SD_ASKED);
    check_range("sd_device_ask", from, bytes);

    door open;

    if (dry())
        d->asked[i].assign(bytes, DRY_ANSWER);      /* of a step that did not run: nobody is to stop at it */
    else
        d->asked[i].assign(p, p + bytes);
    return i;
}

void
sd_device_answer(struct sd_device *d, int number, void *to)
{
    if (number < 0 || number >= SD_ASKED || d->asked[number].empty())
        sd_bug("emulate", "sd_device_answer: %d was not asked for", number);
    check_host("sd_device_answer", to);
    memcpy(to, d->asked[number].data(), d->asked[number].size());
    d->asked[number].clear();
}

