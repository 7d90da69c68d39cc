/* Marks, for timing: noted when they are asked for, and again at each replay of a recording that has them. */
#include <unistd.h>

#include "on_device.h"

int
main(void)
{
    struct sd_device *d = open_device();
    void *p = sd_device_alloc(d, 1 << 20, "a test");
    struct sd_recording *r;
    double before;

    for (int i = 0; i < 3; i++) {
        sd_device_mark(d, i);
        sd_device_fill(d, p, i, 1 << 20);
    }
    CHECK(sd_device_between(d, 0, 1) >= 0 && sd_device_between(d, 1, 2) >= 0, "one after the other");
    CHECK(sd_device_between(d, 0, 2) >= sd_device_between(d, 0, 1), "the time of all is that of its parts");
    CHECK(sd_device_between(d, 0, SD_MARKS - 1) < 0, "a mark that was never noted");
    sd_device_record(d);
    sd_device_mark(d, 0);
    sd_device_fill(d, p, 0, 1 << 20);
    sd_device_mark(d, 1);
    r = sd_device_recorded(d);
    CHECK(r != NULL, "marks can be recorded");
    before = 0;
    for (int i = 0; r && i < 2; i++) {
        double now;

        usleep(2000);
        sd_device_replay(d, r);
        now = sd_device_between(d, 2, 0);           /* 2 is not in the recording */
        CHECK(now > before + 1e-3 && sd_device_between(d, 0, 1) >= 0, "replay %d notes the time anew", i);
        before = now;
    }
    sd_recording_free(r);
    sd_device_free(d, p);
    sd_device_close(d);
    return check_done();
}
