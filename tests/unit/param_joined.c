/* Joined parameters: made once for the same members, dead with the first of them; projections that do not fit. */
#include "check.h"

#include "ops.h"
#include "param.h"

static void
check_faults(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 2, (int64_t[]){ 4, 6 });
    struct sd_projection part[2] = {
        { .weight = sd_param_new(s, "to_q.weight", SD_F32, 2, (int64_t[]){ 5, 6 }, NULL) },
        { .weight = sd_param_new(s, "to_k.weight", SD_F32, 2, (int64_t[]){ 3, 6 }, NULL) },
    };
    struct sd_param *both = sd_param_join(&(struct sd_projections){ 2, part });
    char text[256];

    CHECK(sd_param_join(&(struct sd_projections){ 2, part }) == both, "the same parts are joined once");
    CHECK(sd_param_join(&(struct sd_projections){ 1, part }) != both, "other parts are another parameter");
    part[1].down = sd_param_new(s, "to_k.down", SD_F32, 2, (int64_t[]){ 2, 7 }, NULL);
    part[1].up = sd_param_new(s, "to_k.up", SD_F32, 2, (int64_t[]){ 3, 2 }, NULL);
    sd_path_push(g, "attn");
    sd_op_projections(g, x, &(struct sd_projections){ 2, part }, NULL);
    sd_path_pop(g);
    CHECK(!sd_graph_ok(g), "a down that does not fit");
    snprintf(text, sizeof text, "%s", sd_reason());
    CHECK(strstr(text, "attn") && strstr(text, "to_k.down") && strstr(text, "[2, 7]"), "it is named: %s", text);
    sd_graph_free(g);
    sd_scope_close(s);
}

/* A joined parameter goes with the first of its members, with what is counted for it. */
static void
check_lives(void)
{
    struct sd_scope *s = sd_scope_open(), *inner = sd_scope_open();
    struct sd_projection part = { .weight = sd_param_new(s, "to_q.weight", SD_F32, 2, (int64_t[]){ 5, 6 }, NULL) };
    struct sd_param *joined;
    size_t before = sd_param_device_bytes();

    part.down = sd_param_new(inner, "down", SD_F32, 2, (int64_t[]){ 2, 6 }, NULL);
    part.up = sd_param_new(inner, "up", SD_F32, 2, (int64_t[]){ 5, 2 }, NULL);
    joined = sd_param_join(&(struct sd_projections){ 1, &part });
    CHECK(!joined->trainable, "frozen adapters: nothing to train");
    part.up->trainable = true;
    CHECK(sd_param_join(&(struct sd_projections){ 1, &part }) == joined && joined->trainable, "trainable with its up");
    sd_param_want(joined, SD_BF16, SD_ROWS);
    CHECK(sd_param_device_bytes() > before, "its form is counted");
    sd_param_drop(part.weight);
    CHECK(sd_param_device_bytes() == before, "a member that is dropped takes the form along");
    sd_param_want(joined, SD_BF16, SD_ROWS);
    sd_scope_close(inner);
    CHECK(sd_param_device_bytes() == before, "a member that dies takes the joined one along");
    sd_scope_close(s);
}

int
main(void)
{
    check_faults();
    check_lives();
    return check_done();
}
