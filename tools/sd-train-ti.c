/* sd-train-ti - records with latents to learned tokens (textual inversion). */
#include "train/session.h"
#include "threads.h"

int
main(int argc, char **argv)
{
    sd_threads_yield(argv);
    return sd_session_main(argc, argv, SD_SESSION_TI);
}
