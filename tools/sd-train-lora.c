/* sd-train-lora - records with latents to a LoRA file; with tokens, pivotal tuning. */
#include "train/session.h"
#include "threads.h"

int
main(int argc, char **argv)
{
    sd_threads_yield(argv);
    return sd_session_main(argc, argv, SD_SESSION_LORA);
}
