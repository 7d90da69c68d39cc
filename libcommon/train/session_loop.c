/* session_loop - updates, their log, their state; signals; what is published at the end. */
#include "session_private.h"

#include "clock.h"
#include "device.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct loop {
    struct sd_run *run;
    FILE *log;
    double started, since;      /* since: of the update that is being waited for */
    int64_t first;              /* updates done when this process began */
    int64_t done, asked;        /* updates */
    bool moved[SD_MAX_GROUPS];  /* its gradient was not zero once */
};

static volatile sig_atomic_t stop_signal;

/* A second signal ends the program at once, as the first would have: what is half-written goes too. */
static struct sigaction before[NSIG];

static void
on_stop(int number)
{
    if (!stop_signal)
        stop_signal = number;
    else {
        sigaction(number, &before[number], NULL);
        raise(number);              /* pending until this handler returns */
    }
}

static void
catch(int number)
{
    struct sigaction action = { .sa_handler = on_stop, .sa_flags = (int)SA_RESTART };

    if (!sigaction(number, NULL, &before[number]) && before[number].sa_handler != SIG_IGN)      /* nohup stays nohup */
        sigaction(number, &action, NULL);
}

/* -- log --------------------------------------------------------------------------------------------------------- */

/* Keep the whole lines up to `step`; later ones belong to updates that will be made again. */
static void
cut_log(int64_t step)
{
    int fd = sd_open(S.log, O_RDWR);
    FILE *f;
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    off_t keep = 0;

    if (fd < 0 && errno == ENOENT)
        return;
    if (fd < 0)
        sd_die(S.log, "%s", strerror(errno));
    f = sd_stream(fd, "r");
    while ((n = getline(&line, &room, f)) > 0 && line[n - 1] == '\n') {
        const char *at = strstr(line, "\"step\": ");

        if (!at || strtoll(at + 8, NULL, 10) > step)
            break;
        keep += n;
    }
    free(line);
    while (ftruncate(fd, keep) < 0)
        if (errno != EINTR)
            sd_die(S.log, "cannot be cut: %s", strerror(errno));
    fclose(f);
}

static void
open_log(struct loop *l)
{
    int fd;

    if (!S.log)
        return;
    if (l->first && sd_is_kept(S.log))
        cut_log(l->first);
    if ((fd = sd_open(S.log, O_WRONLY | O_CREAT | (l->first ? O_APPEND : O_TRUNC))) < 0)
        sd_die(S.log, "%s", strerror(errno));
    l->log = sd_stream(fd, "w");
}

static void
write_log(struct loop *l, const struct sd_update *u, double seconds)
{
    const struct sd_trainables *t = l->run->t;

    if (!l->log)
        return;
    fprintf(l->log, "{\"step\": %lld, \"loss\": %.9g, \"lr\": %.9g", (long long)u->step, u->loss, u->lr[0]);
    for (int g = 0; g < t->groups; g++)
        fprintf(l->log, ", \"lr_%s\": %.9g", t->group[g].name, u->lr[g]);
    fprintf(l->log, ", \"grad_norm\": %.9g", u->grad_norm);
    for (int g = 0; g < t->groups; g++)
        fprintf(l->log, ", \"grad_norm_%s\": %.9g", t->group[g].name, u->group_norm[g]);
    fprintf(l->log, ", \"seconds\": %.4f, \"images_per_second\": %.4f}\n", seconds, (double)u->samples / seconds);
    if (fflush(l->log) != 0)
        sd_die(S.log, "%s", strerror(errno));
}

/* -- state ------------------------------------------------------------------------------------------------------- */

static void
save_state(struct sd_run *x, int64_t step)
{
    sd_run_wait_for_hash(x);
    sd_trainer_read(x->trainer);
    if (sd_state_save(S.state, x->t, sd_trainer_optimizer(x->trainer), step, x->made_from) < 0)
        sd_die(S.state, "%s", sd_reason());
}

/* Returns the updates already done. */
static int64_t
take_up(struct sd_run *x)
{
    int64_t step = 0;
    int found;

    if (!S.resume) {
        if (sd_is_kept(S.state)) {
            if (!sd_shared.overwrite)
                sd_usage(S.state, "a state of an unfinished run is there: --resume goes on, --overwrite begins again");
            if (unlink(S.state) < 0)
                sd_die(S.state, "%s", strerror(errno));
        }
        return 0;
    }
    if (access(S.state, F_OK) != 0) {
        sd_note(0, "no state to resume from (%s), beginning", S.state);
        return 0;
    }
    sd_run_wait_for_hash(x);
    found = sd_state_load(S.state, x->t, sd_trainer_optimizer(x->trainer), &step, x->made_from);
    if (found == -2)
        sd_usage(S.state, "belongs to another run: %s", sd_reason());
    if (found < 0)
        sd_die(S.state, "%s", sd_reason());
    sd_note(0, "resuming after step %lld", (long long)step);
    return step;
}

/* -- reports ----------------------------------------------------------------------------------------------------- */

/* The update by which a group must have had a gradient.  Adapters: the first.  Tokens: once every caption was seen;
 * with captions dropped, or recorded ids, the last. */
static int64_t
due(const struct sd_run *x, int group)
{
    int64_t epoch;

    if (strcmp(x->t->group[group].name, "tokens") != 0)
        return 1;
    if (x->replay || S.caption_dropout > 0)
        return S.max_train_steps;
    epoch = (sd_batches_per_epoch(x->data, (uint32_t)S.batch_size) + S.accumulation - 1) / S.accumulation;
    return epoch < S.max_train_steps ? epoch : S.max_train_steps;
}

static void
check_gradients(struct loop *l, const struct sd_update *u)
{
    const struct sd_run *x = l->run;

    for (int g = 0; g < x->t->groups; g++) {
        const struct sd_group *k = &x->t->group[g];

        l->moved[g] |= u->group_norm[g] > 0;
        if (u->step == 1)
            sd_note(0, "%s: %zu numbers, gradient norm %.4g", k->name, k->count, u->group_norm[g]);
        if (!l->first && u->step == due(x, g) && !l->moved[g])
            sd_die(k->name, "the gradient is zero: nothing would be learned");
    }
}

/* Adapters that no layer asked for: behind --clip-skip, they would be written as they began. */
static void
check_adapters(const struct sd_run *x)
{
    const char *first = NULL;
    size_t unused = 0;

    for (size_t i = 0; x->adapters && i < sd_adapters_count(x->adapters); i++)
        if (!sd_adapters_at(x->adapters, i)->used && !unused++)
            first = sd_adapters_at(x->adapters, i)->path;
    if (unused)
        sd_warn(first, "its adapter learns nothing%s, for --clip-skip leaves it out",
                unused > 1 ? sd_sprintf(x->scope, ", nor do %zu others", unused - 1) : "");
}

static void
report(struct loop *l, const struct sd_update *u, double seconds)
{
    double mean = (sd_clock() - l->started) / (double)(u->step - l->first);

    if (u->step == l->first + 3 && u->step < S.max_train_steps)
        sd_note(0, "about %.0f s more at %.2f s a step", mean * (double)(S.max_train_steps - u->step), mean);
    if (isatty(STDERR_FILENO) && sd_verbosity >= 0)
        fprintf(stderr, "\r%s: step %lld/%lld loss %.4f lr %.2e %.2f s/step ", sd_program, (long long)u->step,
                (long long)S.max_train_steps, u->loss, u->lr[0], seconds);
    else if (u->step % 50 == 0 || u->step == S.max_train_steps)
        sd_note(0, "step %lld/%lld loss %.4f lr %.2e %.2f s/step", (long long)u->step, (long long)S.max_train_steps,
                u->loss, u->lr[0], seconds);
}

/* What the steps cost beside the work: for -v, and for tests. */
static void
say_counts(const struct loop *l)
{
    const struct sd_device *d = l->run->m.compute.device;
    struct sd_device_counts c;

    if (!d)
        return;
    c = sd_device_counts(d);
    sd_note(1, "device: %llu bytes written, %llu waits for all that was asked, %lld steps", (unsigned long long)c.written,
            (unsigned long long)c.waits, (long long)(l->done - l->first));
}

static void
end_progress(void)
{
    if (isatty(STDERR_FILENO) && sd_verbosity >= 0)
        fputc('\n', stderr);
}

/* -- the loop ---------------------------------------------------------------------------------------------------- */

static void
stop(struct sd_run *x, int64_t step)
{
    int number = stop_signal;

    end_progress();
    save_state(x, step);
    sd_note(0, "stopped after step %lld and saved; the same command with --resume goes on", (long long)step);
    signal(number, SIG_DFL);
    raise(number);
}

/* Not finite: what was learned before it is kept, unless it is what broke. */
static void
give_up(struct sd_run *x, int64_t done)
{
    const char *reason = sd_strdup(x->scope, sd_reason());
    bool sound = done > 0;

    sd_trainer_read(x->trainer);
    for (size_t i = 0; sound && i < x->t->count; i++)
        sound = isfinite(x->t->value[i]);
    end_progress();
    if (sound)
        save_state(x, done);
    sd_die(NULL, "%s%s", reason, sound ? "; the state before it is saved" : "");
}

/* Waits for the oldest update that was asked for. */
static void
answer(struct loop *l)
{
    struct sd_update u;
    double seconds, time;

    if (sd_trainer_answer(l->run->trainer, &u) < 0)
        give_up(l->run, l->done);
    time = sd_clock();
    seconds = time - l->since;
    l->since = time;
    if (l->done++ == l->first)
        check_adapters(l->run);
    check_gradients(l, &u);
    report(l, &u, seconds);
    write_log(l, &u, seconds);
}

/* One that cannot be made is said when those before it are done. */
static void
ask(struct loop *l)
{
    const char *reason;

    if (sd_trainer_ask(l->run->trainer, l->asked) == 0) {
        l->asked++;
        return;
    }
    reason = sd_strdup(l->run->scope, sd_reason());
    while (l->done < l->asked)
        answer(l);
    sd_fail("%s", reason);
    give_up(l->run, l->done);
}

/* Up to where updates may be asked for before all are answered: there something is saved or shown. */
static int64_t
next_halt(int64_t done)
{
    int64_t halt = S.max_train_steps, every[] = { S.checkpointing_steps, S.sample_every };

    for (int i = 0; i < 2; i++)
        if (every[i] > 0 && done / every[i] * every[i] + every[i] < halt)
            halt = done / every[i] * every[i] + every[i];
    return halt;
}

/* Asks and answers until nothing is left on the way: at a halt, or at a signal, which lets no more be asked for. */
static void
run_to_halt(struct loop *l)
{
    int64_t halt = next_halt(l->done), ahead = sd_trainer_ahead(l->run->trainer);

    l->since = sd_clock();
    ask(l);
    while (l->done < l->asked) {
        while (!stop_signal && l->asked < halt && l->asked - l->done < ahead)
            ask(l);
        answer(l);
    }
}

static void
publish(struct sd_run *x, int64_t done)
{
    struct sd_outputs to = sd_run_outputs(x->scope, x->kind);

    sd_trainer_read(x->trainer);
    sd_run_save(x, &to, S.format, done);
    if (sd_is_kept(S.state) && unlink(S.state) < 0)
        sd_warn(S.state, "could not be removed: %s", strerror(errno));
    if (S.validation_prompts.count)
        sd_run_preview(x, &to, done);
}

void
sd_run_train(struct sd_run *x)
{
    struct loop l = { .run = x, .first = take_up(x) };

    open_log(&l);
    catch(SIGINT);
    catch(SIGTERM);
    l.started = sd_clock();
    l.done = l.asked = l.first;
    while (l.done < S.max_train_steps) {
        int64_t done;

        run_to_halt(&l);
        done = l.done;
        if (stop_signal)
            stop(x, done);
        if (done % S.checkpointing_steps == 0 || done == S.max_train_steps)     /* the end too: publishing may fail */
            save_state(x, done);
        if (S.sample_every && done % S.sample_every == 0 && done < S.max_train_steps) {
            sd_trainer_read(x->trainer);
            sd_run_preview(x, NULL, done);
        }
    }
    end_progress();
    if (l.log && fclose(l.log) != 0)
        sd_die(S.log, "%s", strerror(errno));
    say_counts(&l);
    publish(x, l.done);
}
