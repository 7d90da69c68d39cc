/* session.h - a training run from options to published files: what sd-train-lora and sd-train-ti share.
 *
 * One rule: the last good state is on disk under its name, and an output appears only when the run is complete. */
#ifndef SD_SESSION_H
#define SD_SESSION_H

enum sd_session_kind { SD_SESSION_LORA, SD_SESSION_TI };

/* sd_session_main - the whole program; returns the exit status. */
int sd_session_main(int argc, char **argv, enum sd_session_kind kind);

#endif
