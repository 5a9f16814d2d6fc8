# build.mk - compile the sources once for each instruction set, from any Makefile:
#
#   CSRC := $(shell python3 -c 'import minilora; print(minilora.get_include())')
#   include $(CSRC)/build.mk
#   $(eval $(call MINILORA_RULES,build,-O3 -fopenmp))
#   libminilora.a: $(call minilora_objects,build)
#           $(AR) rcs $@ $^

MINILORA_KERNELS := $(filter-out dispatch,$(basename $(notdir $(wildcard $(CSRC)/*.c))))
MINILORA_HEADERS := $(wildcard $(CSRC)/*.h)
# ISO mode would switch the fused multiply-add off, and a care for errno or floating-point traps keeps loops scalar.
MINILORA_CFLAGS := -std=c11 -ffp-contract=fast -fno-math-errno -fno-trapping-math -I$(CSRC)

ifeq ($(shell uname -m),x86_64)
MINILORA_ISAS ?= baseline v3 v4
else
MINILORA_ISAS ?= baseline
endif
MINILORA_MARCH_v3 := -march=x86-64-v3
MINILORA_MARCH_v4 := -march=x86-64-v4 -mprefer-vector-width=512
MINILORA_DEFINES := $(if $(filter v3,$(MINILORA_ISAS)),-DMINILORA_HAVE_V3) $(if $(filter v4,$(MINILORA_ISAS)),-DMINILORA_HAVE_V4)

# The objects that MINILORA_RULES makes in a folder.
minilora_objects = $(foreach isa,$(MINILORA_ISAS),$(MINILORA_KERNELS:%=$(1)/%_$(isa).o)) $(1)/dispatch.o

# Rules for a folder of objects, compiled with further flags.
define MINILORA_RULES
$(foreach isa,$(MINILORA_ISAS),$(eval $(call MINILORA_RULE,$(1),$(2),$(isa))))
$(1)/dispatch.o: $(CSRC)/dispatch.c $(MINILORA_HEADERS) $(MAKEFILE_LIST)
	@mkdir -p $$(@D)
	$$(CC) $(MINILORA_CFLAGS) $(2) $(MINILORA_DEFINES) -c $$< -o $$@
endef
define MINILORA_RULE
$(1)/%_$(3).o: $(CSRC)/%.c $(MINILORA_HEADERS) $(MAKEFILE_LIST)
	@mkdir -p $$(@D)
	$$(CC) $(MINILORA_CFLAGS) $(2) $(MINILORA_MARCH_$(3)) -DMINILORA_SUFFIX=_$(3) -c $$< -o $$@
endef
