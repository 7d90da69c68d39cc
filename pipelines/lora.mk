# lora.mk - photos to pictures, as make targets.
#
#   make -f lora.mk PHOTOS=rex TRIGGER='<rex>' MODEL=~/models/stable-diffusion-v1-5 PROMPTS=prompts.txt
#
# Everything lands in RUN (default: runs/ and the name of PHOTOS). Each stage depends on the stage before, on a small JSON
# of its own settings, which is rewritten only when they change, and on the model's files: a second make does nothing, another
# rank trains again and crops nothing. A run that fails leaves its log and its state, and no target; make again goes on from there.
# Several runs at once (make -j from a sweep): JOBS says how many, and the cores are divided by it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

PHOTOS  ?= photos
empty   :=
RUN     ?= runs/$(subst $(empty) ,_,$(notdir $(patsubst %/,%,$(PHOTOS))))
$(if $(word 2,$(RUN)),$(error RUN=$(RUN): make knows no names with spaces))
MODEL   ?= $(if $(filter clean,$(MAKECMDGOALS)),,$(error MODEL=... names a diffusers directory or a checkpoint file))
TRIGGER ?= <$(notdir $(patsubst %/,%,$(PHOTOS)))>
CAPTION ?= a picture of {trigger}
TOKEN   ?= $(TRIGGER)
PROMPTS ?=
BASE_PROMPT ?= a picture of $(TRIGGER)
CACHE   ?=

# TOKEN: the new token, TOK=words to start it from words; empty for a LoRA without token, or when TRAIN names it.
# What is handed to the programs as it stands; any option of their manual pages may be added.
CROP    ?= --resolution 512
ENCODE  ?=
TRAIN   ?= --rank 16 --max-train-steps 1000
SAMPLE  ?= --num-inference-steps 30

JOBS    ?= 1
THREADS ?= $(shell echo $$(( ($$(nproc) + $(JOBS) - 1) / $(JOBS) )))
threads := --threads $(THREADS)
config  := $(patsubst --config=%,%,$(filter --config=%,$(subst --config ,--config=,$(TRAIN))))
tokens  := $(or $(TOKEN),$(findstring --placeholder-token,$(TRAIN)),$(if $(config),$(shell jq -r '."placeholder-token" // empty | tostring' $(config))))
q        = '$(subst ','\'',$1)'
quiet   ?= -q

.PHONY: all records latents train pictures clean FORCE
all: $(RUN)/sheet.png
records:  $(RUN)/captioned.sd
latents:  $(RUN)/latents.sd
train:    $(RUN)/lora.safetensors
pictures: $(RUN)/sheet.png

# keep FILE: what was made beside it as FILE.new becomes it, unless it is the same; the file then keeps its date
keep = if cmp -s $1.new $1; then rm $1.new; else mv $1.new $1; fi

# What the stages are told: $(STAGE_words), NAME=VALUE each
crop_words    = $(call q,options=$(CROP))
caption_words = $(call q,caption=$(CAPTION)) $(call q,trigger=$(TRIGGER))
encode_words  = $(call q,model=$(MODEL)) $(call q,options=$(ENCODE))
train_words   = $(call q,model=$(MODEL)) $(call q,trigger=$(TRIGGER)) $(call q,token=$(TOKEN)) $(call q,options=$(TRAIN))
sample_words  = $(call q,model=$(MODEL)) $(call q,prompts=$(PROMPTS)) $(call q,prompt=$(BASE_PROMPT)) $(call q,options=$(SAMPLE))
settings      = jq -n -S --args '[$$ARGS.positional[] | capture("^(?<key>[^=]*)=(?<value>.*)$$"; "m")] | from_entries' -- $($1_words)
# A list, for make knows no names with spaces. That a folder is missing is for sd-crop to say.
photos        = { find -L $(call q,$(PHOTOS)) -maxdepth 1 -type f ! -name '.*' -printf '%f %s %T@\n' 2> /dev/null || true; } | LC_ALL=C sort
# A model that changed under its name is another one: its file, or those of its folders that are read.
listed        = -type f -printf '%p %s %T@\n'
model         = { { find -L $(call q,$(MODEL)) -maxdepth 0 $(listed); \
                    find -L $(call q,$(MODEL))/{model_index.json,unet,vae,scheduler,text_encoder*,tokenizer*} -maxdepth 1 $(listed); \
                  } 2> /dev/null || true; } | LC_ALL=C sort
# unless COMMAND,FILE: FORCE, unless FILE is what COMMAND prints: make -n knows too what is to do
unless        = $(if $(shell $1 | cmp -s - $2 && echo same),,FORCE)
# A stage that fails or is interrupted leaves nothing half-written: $(begin) program > $@.part $(end). The shell waits
# for the program beside it, so that a signal to make alone ends the program too, and takes one signal only: make hands
# on the SIGTERM that the group has had, and a second one would end bash before it has tidied.
begin         = trap 'rm -f $@.part' EXIT; trap 'trap "" HUP INT TERM; kill $$(jobs -p) 2> /dev/null; wait; exit 1' HUP INT TERM;
end           = & wait $$! && mv $@.part $@

.SECONDEXPANSION:
$(RUN)/crop.json $(RUN)/caption.json $(RUN)/encode.json $(RUN)/train.json $(RUN)/sample.json: $(RUN)/%.json: $$(call unless,$$(call settings,$$*),$$@)
	@mkdir -p $(@D)
	@$(call settings,$*) > $@.new
	@$(call keep,$@)
$(RUN)/photos.txt $(RUN)/model.txt: $(RUN)/%.txt: $$(call unless,$$($$*),$$@)
	@mkdir -p $(@D)
	@$($*) > $@.new
	@$(call keep,$@)

$(RUN)/cropped.sd: $(RUN)/photos.txt $(RUN)/crop.json
	$(begin) sd-crop $(quiet) $(CROP) --overwrite --report $(RUN)/crop-report.json $(call q,$(PHOTOS)) > $@.part $(end)

$(RUN)/captioned.sd: $(RUN)/cropped.sd $(RUN)/caption.json
	$(begin) sd-caption $(quiet) $(if $(findstring {trigger},$(CAPTION)),--trigger $(call q,$(TRIGGER))) --caption $(call q,$(CAPTION)) < $< > $@.part $(end)

$(RUN)/latents.sd: $(RUN)/captioned.sd $(RUN)/encode.json $(RUN)/model.txt
	$(begin) sd-encode-latents $(quiet) $(threads) --model $(call q,$(MODEL)) $(if $(CACHE),--cache $(call q,$(CACHE))) $(ENCODE) < $< > $@.part $(end)

# A state older than its settings belongs to another run.
$(RUN)/lora.safetensors: $(RUN)/latents.sd $(RUN)/train.json $(RUN)/model.txt $(config)
	for f in $^; do if [ $$f -nt $@.state ]; then rm -f $@.state; fi; done
	sd-train-lora $(threads) --model $(call q,$(MODEL)) $(if $(TOKEN),--placeholder-token $(call q,$(TOKEN))) \
	  --output $@ $(if $(tokens),--output-embedding $(RUN)/embedding.safetensors) --overwrite --resume --log $(RUN)/train.log $(TRAIN) $<

$(RUN)/prompts.txt: $(PROMPTS) $(RUN)/sample.json
	$(begin) $(if $(PROMPTS),cp $(call q,$(PROMPTS)) $@.part,printf '%s\n' $(call q,$(BASE_PROMPT)) > $@.part) $(end)

$(RUN)/sheet.png: $(RUN)/lora.safetensors $(RUN)/prompts.txt $(RUN)/sample.json $(RUN)/model.txt
	sd-sample $(quiet) $(threads) --model $(call q,$(MODEL)) --lora $< $(if $(tokens),--embedding '$(RUN)/embedding.safetensors') \
	  --output-dir $(RUN)/pictures --sheet $@ --overwrite $(SAMPLE) $(RUN)/prompts.txt

clean:
	rm -rf '$(RUN)'
