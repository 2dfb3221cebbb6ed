/* hf_config.h: config.json in the words of GGUF's metadata. */
#ifndef SP_FORMAT_HF_CONFIG_H
#define SP_FORMAT_HF_CONFIG_H

#include "format/hf_directory.h"
#include "format/hf_families.h"

typedef struct sp_hf_vector { /* a tensor that a GGUF file would have, of numbers that config.json has */
    const char *name, *hf;
    float *values; /* (n) */
    size_t n;
} sp_hf_vector;

typedef struct sp_hf_config {
    const sp_hf_family *family;
    json_t *settings; /* config.json's, or its part's that is the language model's, with the family's defaults where it is silent */
    json_t *metadata; /* GGUF key -> integer, real, bool or string */
    json_t *spelling; /* GGUF key -> what config.json calls it */
    sp_hf_vector factors[2]; /* divisors of RoPE's frequencies; values NULL: none */
} sp_hf_config;

/* FORMAT: a value of the wrong type. UNSUPPORTED: a family, or a setting of it, that nothing here runs, by name. The fields of *out
 * are for sp_hf_config_clear, also after a failure. */
sp_status sp_hf_config_read(sp_hf_config *out, const sp_hf_directory *directory);
void sp_hf_config_clear(sp_hf_config *config);

/* The number under `key` of an object of config.json; absent or null: *out stays. Integers are numbers. */
sp_status sp_hf_get_real(double *out, const json_t *object, const char *key, const char *path);

/* hf_rope.c: the settings of RoPE, in either of the forms that transformers has written them, into metadata. */
sp_status sp_hf_read_rope(sp_hf_config *config, const char *path);

/* What "<architecture>.<gguf>" has, where it is a whole number; else 0. */
size_t sp_hf_config_size(const sp_hf_config *config, const char *gguf);

/* "<architecture>.<gguf>" = value, which is taken; hf is what config.json calls it. */
sp_status sp_hf_config_put(sp_hf_config *config, const char *gguf, json_t *value, const char *hf);

#endif
