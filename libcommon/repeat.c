#include "repeat.h"

#include "diag.h"

void
sd_repeat_end(struct sd_repeat *r)
{
    if (r->recording)
        sd_recording_free(r->recording);
    r->recording = NULL;
}

void
sd_repeat(struct sd_device *d, struct sd_repeat *r, unsigned moves, void (*work)(void *), void *argument)
{
    if (!r->begun || r->one_by_one) {
        r->begun = true;
        work(argument);
        return;
    }
    if (r->moves != moves)
        sd_repeat_end(r);
    if (!r->recording) {
        sd_device_record(d);
        work(argument);
        r->moves = moves;
        if (!(r->recording = sd_device_recorded(d))) {
            static bool said;

            if (!said)
                sd_warn(sd_device_name(d), "the steps cannot be recorded, they run one by one, slower: %s", sd_reason());
            said = r->one_by_one = true;
            work(argument);
            return;
        }
    }
    sd_device_replay(d, r->recording);
}
