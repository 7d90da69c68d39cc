/* sd-train-lora - records with latents to a LoRA file; with tokens, pivotal tuning. */
#include "train/session.h"

int
main(int argc, char **argv)
{
    return sd_session_main(argc, argv, SD_SESSION_LORA);
}
