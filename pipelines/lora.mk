# lora.mk - photos to pictures, as make targets.
#
#   make -f lora.mk PHOTOS=rex TRIGGER='<rex>' MODEL=~/models/stable-diffusion-v1-5 PROMPTS=prompts.txt
#
# Everything lands in RUN (default: runs/ and the name of PHOTOS). Each stage depends on the stage before and on a small JSON
# of its own settings, which is rewritten only when they change: a second make does nothing, another rank trains
# again and crops nothing. A run that fails leaves its log and its state, and no target; make again goes on from there.
# Several runs at once (make -j from a sweep): JOBS says how many, and the cores are divided by it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

PHOTOS  ?= photos
RUN     ?= runs/$(notdir $(patsubst %/,%,$(PHOTOS)))
MODEL   ?= $(error MODEL=... names a diffusers directory or a checkpoint file)
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
photos  := $(sort $(wildcard $(PHOTOS)/*))
quiet   ?= -q

.PHONY: all records latents train pictures clean FORCE
all: $(RUN)/sheet.png
records:  $(RUN)/captioned.sd
latents:  $(RUN)/latents.sd
train:    $(RUN)/lora.safetensors
pictures: $(RUN)/sheet.png

# settings STAGE: NAME=VALUE words as a JSON object; the file keeps its date while its text stays
define settings
$(RUN)/$(1).json: FORCE
	@mkdir -p $$(@D)
	@jq -n -S --args '[$$$$ARGS.positional[] | capture("^(?<key>[^=]*)=(?<value>.*)$$$$"; "m")] | from_entries' -- $(2) > $$@.new
	@if cmp -s $$@.new $$@; then rm $$@.new; else mv $$@.new $$@; fi
endef
$(eval $(call settings,crop,'photos=$(notdir $(photos))' 'options=$(CROP)'))
$(eval $(call settings,caption,'caption=$(CAPTION)' 'trigger=$(TRIGGER)'))
$(eval $(call settings,encode,'model=$(MODEL)' 'options=$(ENCODE)'))
$(eval $(call settings,train,'model=$(MODEL)' 'trigger=$(TRIGGER)' 'token=$(TOKEN)' 'options=$(TRAIN)'))
$(eval $(call settings,sample,'model=$(MODEL)' 'prompts=$(PROMPTS)' 'prompt=$(BASE_PROMPT)' 'options=$(SAMPLE)'))

$(RUN)/cropped.sd: $(photos) $(RUN)/crop.json
	sd-crop $(quiet) $(CROP) --overwrite --report $(RUN)/crop-report.json $(PHOTOS) > $@.part
	mv $@.part $@

$(RUN)/captioned.sd: $(RUN)/cropped.sd $(RUN)/caption.json
	sd-caption $(quiet) $(if $(findstring {trigger},$(CAPTION)),--trigger '$(TRIGGER)') --caption '$(CAPTION)' < $< > $@.part
	mv $@.part $@

$(RUN)/latents.sd: $(RUN)/captioned.sd $(RUN)/encode.json
	sd-encode-latents $(quiet) $(threads) --model '$(MODEL)' $(if $(CACHE),--cache '$(CACHE)') $(ENCODE) < $< > $@.part
	mv $@.part $@

# A state older than its settings belongs to another run.
$(RUN)/lora.safetensors: $(RUN)/latents.sd $(RUN)/train.json $(config)
	for f in $^; do if [ $$f -nt $@.state ]; then rm -f $@.state; fi; done
	sd-train-lora $(threads) --model '$(MODEL)' $(if $(TOKEN),--placeholder-token '$(TOKEN)') \
	  --output $@ $(if $(tokens),--output-embedding $(RUN)/embedding.safetensors) --overwrite --resume --log $(RUN)/train.log $(TRAIN) $<

$(RUN)/prompts.txt: $(PROMPTS) $(RUN)/sample.json
	$(if $(PROMPTS),cp '$(PROMPTS)' $@.part,printf '%s\n' '$(BASE_PROMPT)' > $@.part)
	mv $@.part $@

$(RUN)/sheet.png: $(RUN)/lora.safetensors $(RUN)/prompts.txt $(RUN)/sample.json
	sd-sample $(quiet) $(threads) --model '$(MODEL)' --lora $< $(if $(tokens),--embedding '$(RUN)/embedding.safetensors') \
	  --output-dir $(RUN)/pictures --sheet $@ --overwrite $(SAMPLE) $(RUN)/prompts.txt

clean:
	rm -rf '$(RUN)'
